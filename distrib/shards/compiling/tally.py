"""What a compilation read and left out, and the sentence for one that found nothing usable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distrib.errors import InputError
from distrib.ground_truth.records import Skip, SkipReason


@dataclass
class Tally:
    """Counts of sources, of those that gave lines, of lines, and of what was left out by reason."""

    sources: int = 0
    pages: int = 0
    lines: int = 0
    skipped: Counter[SkipReason] = field(default_factory=Counter)
    examples: dict[SkipReason, Skip] = field(default_factory=dict)
    causes: Counter[SkipReason] = field(default_factory=Counter)
    """Why sources gave no line at all: one reason a source."""
    cause_examples: dict[SkipReason, Skip] = field(default_factory=dict)

    def add(self, lines: int, skips: Sequence[Skip]) -> None:
        """Count a source that gave so many lines and left out these."""
        self.sources += 1
        self.pages += bool(lines)
        self.lines += lines
        for skip in skips:
            self.skipped[skip.reason] += 1
            self.examples.setdefault(skip.reason, skip)
        if skips and not lines:
            cause = _cause(skips)
            self.causes[cause.reason] += 1
            self.cause_examples.setdefault(cause.reason, cause)


def nothing_usable(tally: Tally, sources: Sequence[Path]) -> InputError:
    """The error that says why, by the commonest reason and the first file it befell."""
    if not tally.causes:
        return InputError(
            f"Nothing to compile: there are no lines in {enumerate_sources(sources)}; give others."
        )
    reason, count = tally.causes.most_common(1)[0]
    example = tally.cause_examples[reason]
    detail = example.detail.rstrip(".")
    if str(example.source) not in detail:
        where = (
            f"{example.source}" if example.line_id is None else f"line {example.line_id} of {example.source}"
        )
        detail = f"{where}: {detail}"
    textless = reason in (SkipReason.EMPTY_TEXT, SkipReason.MISSING_TEXT_FILE)
    remedy = "; --keep-empty-lines keeps lines without text" if textless else ""
    if len(sources) == 1:
        return InputError(f"Nothing to compile ({reason}): {detail}{remedy}.")
    return InputError(
        f"Nothing to compile in {len(sources)} files, {count} of them for {reason}: such as {detail}{remedy}."
    )


def enumerate_sources(sources: Sequence[Path]) -> str:
    """The names of a few files, or the first and how many more."""
    if len(sources) <= 3:
        return ", ".join(map(str, sources))
    return f"{sources[0]} and {len(sources) - 1} more files"


def _cause(skips: Sequence[Skip]) -> Skip:
    """The skip that best says why a source gave nothing: of the source itself, or of most of its lines."""
    whole = next((skip for skip in skips if skip.line_id is None), None)
    if whole is not None:
        return whole
    commonest, _ = Counter(skip.reason for skip in skips).most_common(1)[0]
    return next(skip for skip in skips if skip.reason is commonest)
