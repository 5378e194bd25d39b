"""Checking a ledger: was every line trained on exactly once an epoch, over all kills and resumes?

The history of a run is a chain of segments. Work past the last checkpoint of a segment is done again by the
segment that resumed from it, so a segment counts only up to the first step of its successor::

    segment 1   2 processes   steps 0 ............ 199 killed
    segment 2   1 process                 190 ......... 251
    counted     segment 1: 0 to 189, segment 2: 190 to 251
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distrib.errors import InputError
from distrib.stream.ledger import LedgerFile, Record, expected_files, read_expected, segment_files

LISTED = 1000
"""Line numbers that a report lists at most; all are counted."""

_AT_ONCE = 1 << 18
"""Line numbers looked at together: a few megabytes, whatever the size of the data."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Line numbers: how many, and the first ``LISTED`` of them in ascending order."""

    count: int = 0
    first: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SegmentPart:
    """The steps of an epoch that one segment did: ``first_step`` to ``last_step`` of the run."""

    segment: int
    world_size: int
    first_step: int
    last_step: int


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What became of the ``expected`` lines of an epoch.

    ``lines`` were trained on and ``bad`` found unusable, each as often as it happened. ``lost`` lines were
    never given to a process though the epoch is over, ``repeated`` ones more than once, ``foreign`` ones
    are not among those to be trained on. ``under_way``: the run has not come to the end of this epoch.
    """

    epoch: int
    expected: int
    steps: int
    lines: int
    bad: int
    under_way: bool
    lost: Numbers
    repeated: Numbers
    foreign: Numbers
    segments: tuple[SegmentPart, ...]

    @property
    def exact(self) -> bool:
        """Each line at most once, and none lost of an epoch that is over."""
        return not (self.lost.count or self.repeated.count or self.foreign.count)

    @property
    def complete(self) -> bool:
        """Each line exactly once."""
        return self.exact and not self.under_way


@dataclass(frozen=True, kw_only=True)
class LedgerReport:
    """A checked ledger; ``problems`` are sentences about damaged or missing files."""

    epochs: tuple[EpochReport, ...]
    problems: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """True where no epoch has lost, repeated or foreign lines."""
        return all(epoch.exact for epoch in self.epochs)


def verify_ledger(directory: Path, epoch: int | None = None) -> LedgerReport:
    """Check the ledger in ``directory``: one epoch, or all of them.

    Takes one byte a line of memory. Raises InputError where there is no ledger, the epoch is not in it, or
    a file is none of ours.
    """
    problems: list[str] = []
    masks = expected_files(directory)
    segments = [_read_segment(number, files, problems) for number, files in segment_files(directory).items()]
    chain = _chain([segment for segment in segments if segment is not None])
    if not chain or not masks:
        raise InputError(f"{directory}: there is no ledger of a training run; name a run's directory.")
    epochs = sorted({number for segment in chain for number in segment.epochs})
    if epoch is not None and epoch not in epochs:
        known = f"it has {epochs[0]} to {epochs[-1]}" if epochs else "it has none yet"
        raise InputError(f"{directory}: epoch {epoch} is not in the ledger; {known}.")
    chosen = epochs if epoch is None else [epoch]
    reports = [_check_epoch(number, chain, masks, newest=number == epochs[-1]) for number in chosen]
    return LedgerReport(epochs=tuple(reports), problems=tuple(problems))


@dataclass(kw_only=True)
class _File:
    """One process's file as scanned: its last step, and where the records of each epoch lie."""

    file: LedgerFile
    last_step: int
    places: dict[int, _Place] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Place:
    """The records of an epoch in a file: bytes and steps. ``ends_epoch``: the last one is its last step."""

    begin: int
    end: int
    first_step: int
    last_step: int
    ends_epoch: bool


@dataclass(kw_only=True)
class _Segment:
    """A segment; ``stop`` is the step from which its successor took over."""

    number: int
    world_size: int
    start: int
    stop: int
    files: list[_File]

    @property
    def epochs(self) -> set[int]:
        """Epochs that any process did steps of that count."""
        return {
            epoch
            for file in self.files
            for epoch, place in file.places.items()
            if place.first_step < self.stop
        }

    def part(self, epoch: int) -> SegmentPart:
        """Which steps of an epoch in ``epochs`` count."""
        places = [file.places[epoch] for file in self.files if epoch in file.places]
        return SegmentPart(
            segment=self.number,
            world_size=self.world_size,
            first_step=min(place.first_step for place in places),
            last_step=min(self.stop - 1, max(place.last_step for place in places)),
        )

    def ends(self, epoch: int) -> bool:
        """Whether the last step of an epoch is among those that count."""
        places = [file.places[epoch] for file in self.files if epoch in file.places]
        return any(place.ends_epoch and place.last_step < self.stop for place in places)

    def records(self, epoch: int) -> Iterator[Record]:
        """The records of an epoch that count, of all processes."""
        for file in self.files:
            if (place := file.places.get(epoch)) is not None:
                for record in file.file.records(place.begin, place.end):
                    if isinstance(record, Record) and record.step < self.stop:
                        yield record


def _read_segment(number: int, paths: dict[int, Path], problems: list[str]) -> _Segment | None:
    """A segment as far as it was written; None where no process came as far as its header."""
    files = [LedgerFile(path) for path in paths.values()]
    headers = [file.header for file in files if file.header is not None]
    if not headers:
        return None
    world_size, start = headers[0].world_size, headers[0].start_step
    if any((header.world_size, header.start_step) != (world_size, start) for header in headers):
        raise InputError(f"{paths[min(paths)]}: the files of segment {number} are not of one run.")
    scanned = [_scan(file, start, problems) for file in files]
    missing = sorted(set(range(world_size)) - set(paths))
    # Killed while it began, a segment has neither all files nor a step.
    if missing and any(file.places for file in scanned):
        ranks = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        problems.append(f"segment {number} has no file of rank {ranks}; what only those did counts as lost")
    return _Segment(
        number=number,
        world_size=world_size,
        start=start,
        stop=start,
        files=scanned,
    )


def _scan(file: LedgerFile, start: int, problems: list[str]) -> _File:
    """Where the records of each epoch lie in a file."""
    scanned = _File(file=file, last_step=start - 1)
    begin = file.begin
    for record in file.records():
        if isinstance(record, str):
            problems.append(record)
            continue
        place = scanned.places.setdefault(
            record.epoch,
            _Place(begin=begin, end=0, first_step=record.step, last_step=record.step, ends_epoch=False),
        )
        place.end, place.last_step = record.end, record.step
        place.ends_epoch |= record.last
        scanned.last_step, begin = record.step, record.end
    return scanned


def _chain(segments: Sequence[_Segment]) -> list[_Segment]:
    """The segments that made the run what it is, in order, each up to where its successor took over."""
    chain: list[_Segment] = []
    earlier = list(segments)
    while earlier:
        # A run goes on from the newest checkpoint, so from the newest segment that came as far.
        wanted = chain[0].start if chain else 0
        far_enough = [segment for segment in earlier if _reached(segment) >= wanted]
        segment = (far_enough or earlier)[-1]
        segment.stop = wanted if chain else _reached(segment)
        chain.insert(0, segment)
        earlier = [
            other for other in earlier if other.number < segment.number and other.start < segment.start
        ]
    return chain


def _reached(segment: _Segment) -> int:
    """The step after the last that every process of a segment did."""
    last_steps = [file.last_step for file in segment.files]
    # Where a file is gone altogether, the others tell.
    whole = len(segment.files) == segment.world_size
    return (min(last_steps) if whole else max(last_steps)) + 1


def _check_epoch(
    epoch: int, chain: Sequence[_Segment], masks: Mapping[int, Path], *, newest: bool
) -> EpochReport:
    segments = [segment for segment in chain if epoch in segment.epochs]
    # Lines change where a run was resumed with other data, which begins a new epoch.
    known = [number for number in sorted(masks) if number <= segments[0].number] or [min(masks)]
    packed = read_expected(masks[known[-1]])
    counts, beyond, lines, bad = _count(segments, epoch, total=packed.size * 8)
    lost, repeated, foreign = _compare(packed, counts)
    over = not newest or any(segment.ends(epoch) for segment in segments)
    under_way = not over and lost.count > 0
    parts = tuple(segment.part(epoch) for segment in segments)
    return EpochReport(
        epoch=epoch,
        expected=_ones(packed),
        steps=sum(part.last_step - part.first_step + 1 for part in parts),
        lines=lines,
        bad=bad,
        under_way=under_way,
        lost=Numbers() if under_way else lost,
        repeated=repeated,
        foreign=Numbers(count=foreign.count + len(beyond), first=(*foreign.first, *beyond)[:LISTED]),
        segments=parts,
    )


def _count(
    segments: Sequence[_Segment], epoch: int, *, total: int
) -> tuple[npt.NDArray[np.uint8], list[int], int, int]:
    """(how often each of ``total`` lines was given out, numbers past them, lines trained on, bad lines)."""
    counts = np.zeros(total, dtype=np.uint8)
    beyond: set[int] = set()
    lines = bad = 0
    waiting: list[npt.NDArray[np.uint32]] = []
    waiting_lines = 0
    for record in (record for segment in segments for record in segment.records(epoch)):
        lines, bad = lines + record.lines.size, bad + record.bad.size
        waiting += (record.lines.copy(), record.bad.copy())
        waiting_lines += record.lines.size + record.bad.size
        if waiting_lines > _AT_ONCE:
            beyond |= _add(counts, waiting)
            waiting, waiting_lines = [], 0
    beyond |= _add(counts, waiting)
    return counts, sorted(beyond), lines, bad


def _add(counts: npt.NDArray[np.uint8], numbers: list[npt.NDArray[np.uint32]]) -> set[int]:
    """Count line numbers; those that are too large are returned."""
    if not numbers:
        return set()
    lines, times = np.unique(np.concatenate(numbers), return_counts=True)
    inside = lines < counts.size
    # Past 255 times it is enough to know that it was more than once.
    counts[lines[inside]] = np.minimum(counts[lines[inside]] + times[inside], 255)
    return set(lines[~inside].tolist())


def _compare(
    packed: npt.NDArray[np.uint8], counts: npt.NDArray[np.uint8]
) -> tuple[Numbers, Numbers, Numbers]:
    """(lost, repeated, foreign) lines, a part at a time."""
    lost, repeated, foreign = _Numbers(), _Numbers(), _Numbers()
    for start in range(0, counts.size, _AT_ONCE):
        expected = np.unpackbits(packed[start // 8 : (start + _AT_ONCE) // 8]).astype(np.bool_)
        given = counts[start : start + _AT_ONCE]
        lost.add(start, expected & (given == 0))
        repeated.add(start, given > 1)
        foreign.add(start, ~expected & (given > 0))
    return lost.numbers(), repeated.numbers(), foreign.numbers()


class _Numbers:
    """Collects ``Numbers`` from masks."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[int] = []

    def add(self, start: int, mask: npt.NDArray[np.bool_]) -> None:
        """Lines ``start`` + i where ``mask`` is true."""
        where = np.flatnonzero(mask)
        self._count += where.size
        self._first += (start + where[: LISTED - len(self._first)]).tolist()

    def numbers(self) -> Numbers:
        return Numbers(count=self._count, first=tuple(self._first))


def _ones(packed: npt.NDArray[np.uint8]) -> int:
    parts = (packed[start : start + _AT_ONCE] for start in range(0, packed.size, _AT_ONCE))
    return sum(int(np.unpackbits(part).sum()) for part in parts)
