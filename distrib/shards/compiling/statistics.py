"""What a data set holds, counted: for one shard, and added up for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from distrib.shards.arrow_schema import IMAGE_MODES, SPLITS, ImageMode, largest_mode
from distrib.shards.compiling.arrow_writer import PackedLine
from distrib.shards.manifest import HISTOGRAM_BIN, WidthHistogram

_BINS: Final = 1024
"""The last bin holds all wider lines too."""

UNTAGGED_SPLIT: Final = "none"


@dataclass(kw_only=True)
class Statistics:
    """Counts over lines. ``widths`` counts lines by ``columns // HISTOGRAM_BIN`` where columns are known."""

    lines: int = 0
    alphabet: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    modes: set[ImageMode] = field(default_factory=set)
    source_modes: set[ImageMode] = field(default_factory=set)

    def add(self, line: PackedLine) -> None:
        """Count one line."""
        self.lines += 1
        self.alphabet.update(line.text)
        self.languages.update(line.languages)
        self.splits[line.split or UNTAGGED_SPLIT] += 1
        if line.columns:
            self.widths[min(line.columns // HISTOGRAM_BIN, _BINS - 1)] += 1
        self.modes.add(line.mode)
        self.source_modes.add(line.source_mode or line.mode)

    def merge(self, other: Statistics) -> None:
        """Count the lines that ``other`` counted."""
        self.lines += other.lines
        self.alphabet.update(other.alphabet)
        self.languages.update(other.languages)
        self.splits.update(other.splits)
        self.widths.update(other.widths)
        self.modes |= other.modes
        self.source_modes |= other.source_modes

    @property
    def characters(self) -> int:
        """Code points of all texts."""
        return self.alphabet.total()

    @property
    def im_mode(self) -> ImageMode:
        """The mode every stored image can be widened to."""
        return largest_mode(self.modes)

    @property
    def source_mode(self) -> ImageMode:
        """The same of the images as they were cut."""
        return largest_mode(self.source_modes)

    def split_counts(self) -> dict[str, int]:
        """Lines of each split, and of none."""
        return {split: self.splits[split] for split in (*SPLITS, UNTAGGED_SPLIT)}

    def histogram(self) -> WidthHistogram:
        """Lines by columns, those whose columns are not known left out."""
        counts = tuple(self.widths[number] for number in range(max(self.widths, default=-1) + 1))
        return WidthHistogram(bin=HISTOGRAM_BIN, counts=counts)

    def to_json(self) -> dict[str, Any]:
        """As JSON values; keys in an order that does not depend on the lines' order."""
        return {
            "lines": self.lines,
            "alphabet": sorted_counts(self.alphabet),
            "languages": sorted_counts(self.languages),
            "splits": sorted_counts(self.splits),
            "widths": sorted(self.widths.items()),
            "modes": _in_order(self.modes),
            "source_modes": _in_order(self.source_modes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Statistics:
        """What ``to_json`` gave. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            lines=int(values["lines"]),
            alphabet=Counter(values["alphabet"]),
            languages=Counter(values["languages"]),
            splits=Counter(values["splits"]),
            widths=Counter({int(number): int(count) for number, count in values["widths"]}),
            modes=set(values["modes"]),
            source_modes=set(values["source_modes"]),
        )


def sorted_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts in the order of their keys, those of zero left out."""
    return {key: count for key, count in sorted(counts.items()) if count}


def _in_order(modes: Iterable[ImageMode]) -> list[ImageMode]:
    return sorted(modes, key=IMAGE_MODES.index)
