"""A few validation lines to look at: always the same ones, with what each validation has made of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from distrib.ground_truth.network_input import NetworkInput
from distrib.stream.batches import UNREADABLE
from distrib.stream.lines import LineCollection

_WHITE = 255


@dataclass(kw_only=True)
class Readings:
    """What a validation made of some of its lines, by line number: (truth, prediction)."""

    lines: Collection[int] = ()
    texts: dict[int, tuple[str, str]] = field(default_factory=dict)

    def note(self, lines: Sequence[int], truths: Sequence[str], predictions: Sequence[str]) -> None:
        """Keep those of a batch that are asked for."""
        if self.lines:
            texts = zip(lines, truths, predictions, strict=True)
            self.texts |= {line: (truth, read) for line, truth, read in texts if line in self.lines}


@dataclass(frozen=True, kw_only=True)
class ShownLines:
    """The validation lines to show, and how their images are made."""

    lines: tuple[int, ...]
    collection: LineCollection
    network_input: NetworkInput

    @classmethod
    def chosen(
        cls,
        count: int,
        held: npt.NDArray[np.int64],
        collection: LineCollection,
        network_input: NetworkInput,
    ) -> ShownLines:
        """``count`` of the lines ``held`` (M,) to validate on: those with the smallest keys, which are
        always the same, and as good as drawn by lot."""
        first = np.argsort(collection.index().keys[held], kind="stable")[:count]
        return cls(lines=tuple(held[first].tolist()), collection=collection, network_input=network_input)

    def image(self, line: int) -> npt.NDArray[np.uint8] | None:
        """What the network sees of a line, uint8 (C, H, W) with dark ink; None where it cannot be read."""
        try:
            record = self.collection.record(line)
            pixels = self.network_input(
                record.image(),
                normalized_height=record.normalized_height,
                bitonal_source=record.bitonal_source,
            )
        except UNREADABLE:
            return None
        return np.asarray(_WHITE - pixels, dtype=np.uint8)
