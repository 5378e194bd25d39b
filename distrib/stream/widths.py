"""The width of every line as network input, before any is decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distrib.ground_truth.network_input import NetworkInput
from distrib.stream.lines import LineCollection


@dataclass(frozen=True, kw_only=True)
class InputWidths:
    """``columns`` int32 (N,) of each line with padding, 0 for images without pixels; ``exact`` bool (N,) is
    false where straightening decides in the end."""

    columns: npt.NDArray[np.int32]
    exact: npt.NDArray[np.bool_]


def input_widths(collection: LineCollection, network_input: NetworkInput) -> InputWidths:
    """The widths of all lines of a collection: exact for lines stored normalised or merely scaled."""
    index = collection.index()
    normalized = np.concatenate(
        [np.full(len(each), each.normalized_height > 0) for each in collection.datasets]
    )
    columns = network_input.output_widths(index.widths, index.heights, normalized=normalized)
    exact = normalized if network_input.follows_centerline else np.ones(len(index), dtype=bool)
    return InputWidths(columns=columns, exact=exact)
