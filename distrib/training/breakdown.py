"""Where the errors are: per source file, and the worst lines, in memory that does not grow with the lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

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

    def worst_first(self) -> list[LineErrors]:
        """At most ``keep`` lines: by errors, since those make the CER, then by rate, then by place, so
        that neither choice nor order depends on which rank saw the line."""
        return sorted(self._candidates, key=_rank)[: self.keep]


def _rank(line: LineErrors) -> tuple[int, float, str, str, str, str]:
    return -line.errors, -line.cer, line.source, line.line_id, line.truth, line.prediction
