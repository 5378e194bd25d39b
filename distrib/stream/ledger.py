"""The ledger of a run: which lines each process was given in which step, written as it happens.

A run writes one *segment* from start or resume to its end or death, one file a process::

    ledger/segment-0003-rank-00001.bin
        {"version": 1, "segment": 3, "rank": 1, "world_size": 2, "start_step": 190, "lines": 335}\\n
        record of step 190, record of step 191, ...

    record   step u64, epoch u32 (top bit: the last step of the epoch), n u32, m u32,
             n line numbers u32, m numbers of lines that were unusable u32, crc32 u32 of all before;
             little-endian

    ledger/lines-0001.npy      one bit a line of the data: is it to be trained on? from segment 1 on

Files only grow, a record by a single write, so a process killed at any instant leaves at most a torn last
record. Steps count through the whole run.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from distrib.errors import InputError, RunError
from distrib.files import write_error, written_whole

VERSION = 1
_HEAD = struct.Struct("<QIII")
_CRC = struct.Struct("<I")
_LAST_STEP = 1 << 31
_MOST_HEADER_BYTES = 4096
_FILE_NAME = re.compile(r"segment-(\d{4,})-rank-(\d{5,})\.bin")
_LINES_NAME = re.compile(r"lines-(\d{4,})\.npy")
_NONE: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

Lines = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class SegmentHeader:
    """First line of a file: what wrote it. ``lines`` are those of an epoch; ``start_step`` its first step."""

    segment: int
    rank: int
    world_size: int
    start_step: int
    lines: int
    version: int = VERSION


class Record(NamedTuple):
    """Lines one process was given in one step. The next record begins at byte ``end``."""

    step: int
    epoch: int
    last: bool
    lines: npt.NDArray[np.uint32]
    bad: npt.NDArray[np.uint32]
    end: int


class LedgerWriter:
    """Appends one process's records to its file of a new segment.

    Raises RunError where the file exists (another job writes the same run) or cannot be written.
    """

    def __init__(
        self, directory: Path, *, segment: int, rank: int, world_size: int, start_step: int, lines: int
    ) -> None:
        self.path = directory / f"segment-{segment:04}-rank-{rank:05}.bin"
        header = SegmentHeader(
            segment=segment, rank=rank, world_size=world_size, start_step=start_step, lines=lines
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        except FileExistsError as error:
            raise RunError(
                f"{self.path} is there already: another job writes this run directory; stop one of them."
            ) from error
        except OSError as error:
            raise write_error(self.path, error) from error
        self._size = 0
        self._write(json.dumps(asdict(header)).encode() + b"\n")

    def append(self, *, step: int, epoch: int, lines: Lines, bad: Lines = _NONE, last: bool = False) -> None:
        """Record a step: numbers of the ``lines`` trained on and of the ``bad`` ones, which were unusable.

        Every process records every step, even without a line. ``last`` marks the last step of the epoch.
        Raises RunError where the disk is full or fails; the file then ends with the record before.
        """
        head = _HEAD.pack(step, epoch | (_LAST_STEP if last else 0), lines.size, bad.size)
        body = head + lines.astype("<u4").tobytes() + bad.astype("<u4").tobytes()
        self._write(body + _CRC.pack(zlib.crc32(body)))

    def sync(self) -> None:
        """Return when all records are on the disk. Raises RunError where it fails."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise write_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; records cannot be added any more. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            # Half a record may stand at the end only.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise write_error(self.path, error) from error
        self._size += len(data)

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def next_segment(directory: Path) -> int:
    """The number of a new segment: 1 where there is no ledger yet. One process asks and tells the others."""
    numbers = [int(match[1]) for path in _files(directory) if (match := _FILE_NAME.fullmatch(path.name))]
    return max(numbers, default=0) + 1


def segment_files(directory: Path) -> dict[int, dict[int, Path]]:
    """The files of a ledger by segment and rank."""
    found: dict[int, dict[int, Path]] = {}
    for path in _files(directory):
        if match := _FILE_NAME.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    return {segment: dict(sorted(found[segment].items())) for segment in sorted(found)}


def write_expected(directory: Path, lines: Lines, *, total: int, segment: int = 1) -> None:
    """Keep which of ``total`` lines are to be trained on from ``segment`` on, unless that is known already.

    One process does this for all. Raises RunError or InputError where it cannot be written.
    """
    mask = np.zeros(total, dtype=np.bool_)
    mask[lines] = True
    packed = np.packbits(mask)
    known = expected_files(directory)
    if known and np.array_equal(read_expected(known[max(known)]), packed):
        return
    path = directory / f"lines-{segment:04}.npy"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            np.save(file, packed, allow_pickle=False)
    except OSError as error:
        raise write_error(path, error) from error


def expected_files(directory: Path) -> dict[int, Path]:
    """Files of the lines to be trained on, by the segment they hold from."""
    matches = [(match, path) for path in _files(directory) if (match := _LINES_NAME.fullmatch(path.name))]
    return {int(match[1]): path for match, path in matches}


def read_expected(path: Path) -> npt.NDArray[np.uint8]:
    """Packed bits of a file of lines, mapped. Raises InputError where it is damaged."""
    try:
        packed = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged; the ledger cannot be checked without it.") from error
    if packed.dtype != np.uint8 or packed.ndim != 1:
        raise InputError(f"{path} is no list of lines; the ledger cannot be checked without it.")
    return np.asarray(packed)


class LedgerFile:
    """One process's file of a segment. ``header`` is None where it was killed before writing one."""

    def __init__(self, path: Path) -> None:
        """Raises InputError where the file is none of ours."""
        self.path = path
        with path.open("rb") as file:
            line = file.readline(_MOST_HEADER_BYTES)
        self.begin = len(line)
        self.header = _read_header(path, line) if line.endswith(b"\n") else None

    def records(self, begin: int | None = None, end: int | None = None) -> Iterator[Record | str]:
        """Records from byte ``begin`` to ``end``, and a sentence for each stretch of damage between them.

        A torn record at the end of the file is nobody's fault and passed over. Lines are views of the mapped
        file: copy what is to be kept.
        """
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if self.header is None or size <= self.begin:
                return
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        # Closed by the last view of it: a caller may still hold a record.
        stop = size if end is None else min(end, size)
        position, step = self.begin if begin is None else begin, self.header.start_step - 1
        while position < stop:
            record = _record_at(data, position)
            if record is None:
                found = _next_record(data, position, after_step=step)
                if found is None:
                    return
                yield f"{self.path}: bytes {position} to {found} are damaged, after step {step}"
                position = found
                continue
            yield record
            position, step = record.end, record.step


def _read_header(path: Path, line: bytes) -> SegmentHeader:
    try:
        header = SegmentHeader(**json.loads(line))
        numbers = asdict(header).values()
        if header.version != VERSION or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError
        return header
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is no ledger file of this version; move it away or check with another version."
        ) from error


def _record_at(data: mmap.mmap, position: int) -> Record | None:
    """The record at a byte, or None where there is no whole one."""
    body = position + _HEAD.size
    if body + _CRC.size > len(data):
        return None
    step, epoch, line_count, bad_count = _HEAD.unpack_from(data, position)
    end = body + 4 * (line_count + bad_count)
    if end + _CRC.size > len(data):
        return None
    if zlib.crc32(memoryview(data)[position:end]) != _CRC.unpack_from(data, end)[0]:
        return None
    return Record(
        step=step,
        epoch=epoch & ~_LAST_STEP,
        last=bool(epoch & _LAST_STEP),
        lines=np.frombuffer(data, dtype="<u4", count=line_count, offset=body),
        bad=np.frombuffer(data, dtype="<u4", count=bad_count, offset=body + 4 * line_count),
        end=end + _CRC.size,
    )


def _next_record(data: mmap.mmap, damaged: int, *, after_step: int) -> int | None:
    """Where the next whole record begins behind damage; None at the end of the file."""
    smallest = _HEAD.size + _CRC.size
    most_steps = after_step + 1 + len(data) // smallest
    for position in range(damaged + 1, len(data) - smallest + 1):
        # Damage is rare and looked at byte by byte; the step tells cheaply where a record cannot be.
        (step,) = struct.unpack_from("<Q", data, position)
        if after_step < step <= most_steps and _record_at(data, position) is not None:
            return position
    return None


def _files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
