"""Which checkpoints a run directory has, which of them to go on from, which is best, and which may go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from distrib.errors import InputError
from distrib.runtime.checkpoints.names import ABORT, LAST
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.rows import CheckpointFacts, CheckpointRow, append_row, read_rows


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint of a run directory; ``facts`` are None where it is not on record."""

    path: Path
    facts: CheckpointFacts | None


@dataclass(frozen=True, kw_only=True)
class ScoredCheckpoint:
    """A checkpoint that was validated, with its exact score."""

    path: Path
    score: float
    step: int
    epoch: int


def newest_first(directory: Path) -> list[SavedCheckpoint]:
    """The checkpoints of a run directory, the one written last first; nothing is read but the record.

    Steps say nothing here: a run resumed from an older checkpoint makes the newer ones history. What a crash
    left without a row, or what somebody put there, stands where its time of change puts it.
    """
    rows = read_rows(directory)
    found = [
        SavedCheckpoint(path=directory / row.name, facts=row.facts)
        for row in reversed(rows.values())
        if (directory / row.name).exists()
    ]
    unrecorded = [
        path
        for path in directory.glob("*.ckpt")
        if path.name not in rows and not path.name.startswith(".") and path.exists()
    ]
    # The link to the newest comes last: it counts only where that has lost its own name.
    for path in sorted(unrecorded, key=lambda path: (path.name == LAST, _changed(path), path.name)):
        if path.name == LAST and any(_same(path, each.path) for each in found):
            continue
        newer = [_changed(each.path) > _changed(path) for each in found]
        place = newer.index(False) if False in newer else len(found)
        found.insert(place, SavedCheckpoint(path=path, facts=None))
    return found


def newest_valid(directory: Path, *, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole, every byte compared; None where there is none.

    ``report`` gets a sentence for each newer one that is not.
    """
    for each in newest_first(directory):
        try:
            open_checkpoint(each.path, verify=True)
        except InputError as error:
            report(f"{error} The next older one is tried.")
        else:
            return each.path
    return None


def go_on_from(path: Path) -> None:
    """Put a checkpoint on record as the newest of its directory: what was written after it is history.

    Raises OSError where the record cannot be written.
    """
    rows = list(read_rows(path.parent).values())
    row = next((row for row in reversed(rows) if _same(path.parent / row.name, path)), None)
    if row is not None and row is not rows[-1]:
        append_row(path.parent, row.json())


def best(directory: Path) -> list[ScoredCheckpoint]:
    """The validated checkpoints of a run directory, best first; of equal ones the one written later."""
    scored = []
    for each in newest_first(directory):
        facts = each.facts or _facts_inside(each.path)
        if facts is not None and facts.kind == "validation" and facts.score is not None:
            scored.append(
                ScoredCheckpoint(path=each.path, score=facts.score, step=facts.step, epoch=facts.epoch)
            )
    return sorted(scored, key=lambda each: -each.score)


def to_remove(
    rows: Sequence[CheckpointRow], *, keep_best: int, keep_last: int, protected: Collection[str] = ()
) -> list[str]:
    """The names of the checkpoints that need not be kept; ``rows`` are of those that exist, as written.

    Kept are the best ``keep_best`` that were validated (of equal ones those written later), the newest
    ``keep_last`` (at least one), those ``protected``, and what an error left.
    """
    regular = [row for row in rows if row.name != ABORT and row.facts.kind != "abort"]
    validated = [
        row for row in reversed(regular) if row.facts.kind == "validation" and row.facts.score is not None
    ]
    validated.sort(key=lambda row: -(row.facts.score or 0.0))
    kept = {row.name for row in [*validated[:keep_best], *regular[-max(1, keep_last) :]]}
    return [row.name for row in regular if row.name not in kept and row.name not in protected]


def _facts_inside(path: Path) -> CheckpointFacts | None:
    try:
        return open_checkpoint(path, verify=False).facts
    except InputError:
        return None


def _changed(path: Path) -> int:
    """The time of change in nanoseconds; of what has gone meanwhile, long ago."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
