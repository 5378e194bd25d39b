"""Where the errors are: per source file, the worst lines, and lines that could not be read at all.

Each can be cut into pieces of bounded size and merged from pieces of any processes, whatever lines they had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from distrib.stream.batches import BadLine
from distrib.training.metrics import ErrorCounts


@dataclass(kw_only=True, slots=True)
class FileErrors:
    """Light error counts of each source file."""

    by_source: dict[str, ErrorCounts] = field(default_factory=dict)

    def add(self, source: str, truth: str, prediction: str) -> None:
        """Count one line of ``source``."""
        self.by_source.setdefault(source, ErrorCounts()).add(truth, prediction)

    def merge(self, other: FileErrors) -> None:
        """Add what another rank counted."""
        for source, counts in other.by_source.items():
            self.by_source.setdefault(source, ErrorCounts()).merge(counts)

    def pieces(self, most: int) -> Iterator[FileErrors]:
        """Errors of at most ``most`` files each."""
        entries = iter(self.by_source.items())
        while part := dict(islice(entries, most)):
            yield FileErrors(by_source=part)

    def worst_first(self) -> list[tuple[str, ErrorCounts]]:
        """(source, counts), highest CER first, then by name."""
        return sorted(self.by_source.items(), key=lambda item: (-item[1].cer, item[0]))

    def to_json(self) -> list[dict[str, Any]]:
        """``worst_first`` as plain JSON values."""
        return [{"source": source, **counts.to_json()} for source, counts in self.worst_first()]


@dataclass(frozen=True, kw_only=True, slots=True)
class LineErrors:
    """One line that was not recognised whole."""

    source: str
    line_id: str
    truth: str
    prediction: str
    errors: int

    @property
    def cer(self) -> float:
        """Character error rate of the line."""
        return self.errors / max(len(self.truth), 1)

    def to_json(self) -> dict[str, Any]:
        """Fields and rate as plain JSON values."""
        return {**asdict(self), "cer": self.cer}


@dataclass(kw_only=True, slots=True)
class WorstLines:
    """The ``keep`` lines with most errors of any number of lines."""

    keep: int = 20
    _candidates: list[LineErrors] = field(default_factory=list)

    def add(self, line: LineErrors) -> None:
        """Consider one line; lines without errors are passed over."""
        if line.errors and self.keep:
            self._candidates.append(line)
            if len(self._candidates) >= 2 * self.keep + 100:
                self._candidates = self.worst_first()

    def merge(self, other: WorstLines) -> None:
        """Consider what another rank kept."""
        for line in other._candidates:
            self.add(line)

    def pieces(self, most: int) -> Iterator[WorstLines]:
        """At most ``most`` lines each, of those kept."""
        kept = self.worst_first()
        for start in range(0, len(kept), most):
            yield WorstLines(keep=self.keep, _candidates=kept[start : start + most])

    def worst_first(self) -> list[LineErrors]:
        """At most ``keep`` lines: by errors, since those make the CER, then by rate, then by place, so
        that neither choice nor order depends on which rank saw the line."""
        return sorted(self._candidates, key=_rank)[: self.keep]


def _rank(line: LineErrors) -> tuple[int, float, str, str, str, str]:
    return -line.errors, -line.cer, line.source, line.line_id, line.truth, line.prediction


@dataclass(kw_only=True, slots=True)
class UnreadLines:
    """How many lines could not be read, and the ``keep`` of them with the lowest numbers."""

    keep: int = 1000
    count: int = 0
    _kept: list[BadLine] = field(default_factory=list)

    def add(self, *lines: BadLine) -> None:
        """Count lines."""
        self.count += len(lines)
        self._keep(lines)

    def merge(self, other: UnreadLines) -> None:
        """Add what another rank counted."""
        self.count += other.count
        self._keep(other._kept)

    def pieces(self, most: int) -> Iterator[UnreadLines]:
        """At most ``most`` lines each, of those kept."""
        yield UnreadLines(keep=self.keep, count=self.count)
        kept = self.in_order()
        for start in range(0, len(kept), most):
            yield UnreadLines(keep=self.keep, _kept=kept[start : start + most])

    def in_order(self) -> list[BadLine]:
        """At most ``keep`` lines, by number."""
        return sorted(self._kept)[: self.keep]

    def _keep(self, lines: Iterable[BadLine]) -> None:
        self._kept += lines
        if len(self._kept) >= 2 * self.keep + 100:
            self._kept = self.in_order()
