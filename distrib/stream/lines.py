"""The lines of one or more compiled data sets under one numbering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distrib.errors import InputError
from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.records import BaseDirection
from distrib.shards.arrow import SPLIT_CODES, ArrowDataset, Record, SampleIndex

__all__ = ["SPLIT_CODES", "LineCollection", "input_widths", "open_collection"]


class LineCollection:
    """Data sets one after the other; line ``i`` counts through all of them. Images stay on disk."""

    def __init__(self, datasets: Sequence[ArrowDataset]) -> None:
        if not datasets:
            raise InputError("There is no data set to read lines from.")
        self.datasets = tuple(datasets)
        self._index: SampleIndex | None = None
        self._ends = np.cumsum([len(dataset) for dataset in self.datasets])
        _require_one_type(self.datasets)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the index, which workers do not need and which grows with the data.
        return LineCollection, (self.datasets,)

    @property
    def line_type(self) -> str:
        """``baselines`` or ``bbox``, the same for all data sets."""
        return self.datasets[0].line_type

    @property
    def legacy_polygons(self) -> bool:
        """True where any of the data sets was cut with the extractor of kraken < 5."""
        return any(dataset.legacy_polygons for dataset in self.datasets)

    @property
    def bitonal(self) -> bool:
        """True where every image of every data set has one bit a pixel."""
        return all(dataset.im_mode == "1" for dataset in self.datasets)

    def record(self, line: int) -> Record:
        """The text and image bytes of line ``line``."""
        number = int(np.searchsorted(self._ends, line, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return self.datasets[number].record(line - start)

    def place(self, line: int) -> tuple[str, str]:
        """(source file, line id) of line ``line``; empty where the data set does not name them."""
        record = self.record(line)
        return record.source or "", record.line_id or ""

    def index(self) -> SampleIndex:
        """The indexes of all data sets, joined; page keys only where every data set has them."""
        if self._index is None:
            self._index = self._join_indexes()
        return self._index

    def _join_indexes(self) -> SampleIndex:
        parts = [dataset.index() for dataset in self.datasets]
        page_keys = [part.page_keys for part in parts if part.page_keys is not None]
        return SampleIndex(
            widths=np.concatenate([part.widths for part in parts]),
            heights=np.concatenate([part.heights for part in parts]),
            keys=np.concatenate([part.keys for part in parts]),
            page_keys=np.concatenate(page_keys) if len(page_keys) == len(parts) else None,
            splits=np.concatenate([part.splits for part in parts]),
        )

    def texts(self) -> Iterator[tuple[str, BaseDirection | None]]:
        """(text, base direction stated by the ground truth) of every line, in order."""
        for dataset in self.datasets:
            yield from dataset.texts_and_directions()


def open_collection(paths: Sequence[Path]) -> LineCollection:
    """Open compiled data sets; raises InputError for a file that is none."""
    return LineCollection([ArrowDataset(path) for path in paths])


def input_widths(collection: LineCollection, network_input: NetworkInput) -> npt.NDArray[np.int32]:
    """Width int32 (N,) in columns that each line has as network input, without decoding any."""
    index = collection.index()
    sizes = zip(index.widths.tolist(), index.heights.tolist(), strict=True)
    widths = (network_input.output_width(width, height) if height else 0 for width, height in sizes)
    return np.fromiter(widths, dtype=np.int32, count=len(index))


def _require_one_type(datasets: Sequence[ArrowDataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if other.line_type != first.line_type:
            raise InputError(
                f"{other.path} holds {other.line_type} lines but {first.path} holds {first.line_type} lines; "
                "train on one type, or relabel one with `ketos compile --force-type`."
            )
