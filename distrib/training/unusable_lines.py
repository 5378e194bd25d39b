"""Lines that could not be used, of all processes, and when they are too many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distrib.stream.batches import LineBatch, StepBatch

Where = Literal["training", "validation"]

BadLines = dict[tuple[Where, int], str]
"""Why a line of a collection could not be used, each line once however many epochs met it."""

_FEW_LINES = 200
"""A share of unusable lines means something from this many lines on; before, only the epoch's end counts."""


@dataclass(kw_only=True)
class UnusableLines:
    """Counts them against ``limit``, the share of all lines that is borne with; ``known`` gives reasons.

    ``excess`` of training and validation say in a few words that they are too many, or None.
    """

    limit: float
    known: BadLines = field(default_factory=dict)
    _bad: int = 0
    _lines: int = 0
    _whole_epoch: bool = False
    _held_bad: int = 0
    _held: int = 0

    def note(self, where: Where, batch: LineBatch) -> None:
        """Keep the reasons of a batch's unusable lines."""
        self.known |= {(where, bad.line): bad.reason for bad in batch.bad}

    def excess_of_training(self, batch: StepBatch, *, lines: int, bad: int) -> str | None:
        """Count a step of all processes: ``lines`` used and ``bad`` ones."""
        if batch.step == 0:
            self._bad, self._lines, self._whole_epoch = 0, 0, True
        self._bad += bad
        self._lines += lines + bad
        # Of an epoch that was resumed near its end the few lines left say little.
        known = batch.last and self._whole_epoch
        seen = self._lines if known else max(self._lines, _FEW_LINES)
        if self._bad <= self.limit * seen:
            return None
        return f"{self._bad} of {self._lines} lines of this epoch could not be used"

    def begin_validation(self) -> None:
        """Count anew."""
        self._held_bad, self._held = 0, 0

    def count_validation(self, batch: LineBatch) -> None:
        """Count and note the lines of a batch of this process."""
        self.note("validation", batch)
        self._held_bad += len(batch.bad)
        self._held += len(batch.bad) + len(batch.lines)

    @property
    def validation_counts(self) -> list[int]:
        """What this process has counted in a validation."""
        return [self._held_bad, self._held]

    def excess_of_validation(self, bad: float, lines: float) -> str | None:
        """The same for the sums over all processes."""
        if bad < lines and bad <= self.limit * max(lines, _FEW_LINES):
            return None
        return f"{bad:.0f} of {lines:.0f} validation lines could not be used"

    def sentence(self, where: Where, what: str) -> str:
        """``what`` with an example and the way out."""
        example = next(reason for (place, _), reason in self.known.items() if place == where)
        return (
            f"{what} (such as: {example}); look at the data with `ketos inspect --verify`, or allow more "
            "with --max-bad-fraction."
        )

    def counts(self) -> list[int]:
        """What is counted from step to step, for a checkpoint."""
        return [self._bad, self._lines, int(self._whole_epoch)]

    def load_counts(self, counts: list[int]) -> None:
        """Go on counting."""
        self._bad, self._lines, self._whole_epoch = counts[0], counts[1], bool(counts[2])
