"""A part of a data set that one process writes: numbered shards, each with its index and its record.

    00000/000000.arrow      the shard
          000000.index      where its lines are (see shards.index)
          000000.record     what it holds, written last (see shards.shard_records)

A part can be continued where a killed process left it: its whole shards are kept as far as the sources in
them are unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import pyarrow as pa

from distrib.errors import KetosError
from distrib.files import write_error
from distrib.ground_truth.records import LineType
from distrib.shards.arrow_index import index_arrow
from distrib.shards.compiling.arrow_writer import ArrowWriter
from distrib.shards.compiling.pack import PackedPage
from distrib.shards.compiling.shard_records import DamagedRecord, ShardRecord, SourceRecord, read_sources
from distrib.shards.compiling.statistics import Statistics
from distrib.shards.compiling.tar_writer import TarWriter
from distrib.shards.index import write_index
from distrib.shards.index_file import map_part
from distrib.shards.manifest import ShardFormat, checksum_of
from distrib.shards.tar_index import index_tar

SUFFIXES: Final[dict[ShardFormat, str]] = {"arrow": ".arrow", "webdataset": ".tar"}


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How shards are written. A shard is closed once it has ``shard_size`` bytes."""

    format: ShardFormat
    shard_size: int
    line_type: LineType
    legacy_polygons: bool
    recordbatch_size: int
    height: int
    normalized: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A place in a list of sources: ``line`` lines of number ``source`` have been dealt with."""

    source: int = 0
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A whole shard in the folder of a part."""

    folder: Path
    number: int
    record: ShardRecord

    @property
    def path(self) -> Path:
        """The shard file."""
        assert self.record.name is not None
        return self.folder / self.record.name

    @property
    def record_path(self) -> Path:
        """The file with its record."""
        return record_path(self.folder, self.number)

    def sources(self) -> Iterator[SourceRecord]:
        """The sources that end in the shard. Raises OSError and DamagedRecord."""
        return read_sources(self.record_path)

    def index(self) -> pa.RecordBatch:
        """Where its lines are. Raises InputError where that is damaged."""
        return map_part(index_path(self.folder, self.number)).batches[0]


def record_path(folder: Path, number: int) -> Path:
    """The record file of shard ``number``."""
    return folder / f"{number:06d}.record"


def index_path(folder: Path, number: int) -> Path:
    """The index file of shard ``number``."""
    return folder / f"{number:06d}.index"


def written_shards(folder: Path) -> Iterator[WrittenShard]:
    """The shards of a part from the first on, until one is not whole."""
    number = 0
    while True:
        try:
            record = ShardRecord.read(record_path(folder, number))
            shard = WrittenShard(folder=folder, number=number, record=record)
            if record.name is not None and shard.path.stat().st_size != record.size:
                return
        except (OSError, DamagedRecord):
            return
        yield shard
        number += 1


class PartWriter:
    """Writes pages to numbered shards of a part, from shard ``number`` on; a context manager.

    Whatever ends the block, the shards that are whole stay. ``first`` is the place in the list of sources
    where it begins.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full or fails.
    """

    def __init__(self, folder: Path, settings: ShardSettings, *, number: int, first: Position) -> None:
        self._folder = folder
        self._settings = settings
        self._number = number
        self._before = first.line
        self._writer: ArrowWriter | TarWriter | None = None
        self._statistics = Statistics()
        self._sources: list[SourceRecord] = []

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close(begun=None)
        elif self._writer is not None:
            with contextlib.suppress(KetosError):
                self._writer.__exit__(kind, error, trace)

    def add(self, page: PackedPage, *, number: int, start: int = 0) -> None:
        """Write the lines of a page from ``start`` on; it is source ``number`` of all."""
        for line, packed in enumerate(page.lines[start:], start):
            writer = self._open()
            if isinstance(writer, TarWriter):
                writer.add(packed, key=f"{number:08d}_{line:04d}")
            else:
                writer.add(packed)
            self._statistics.add(packed)
            if writer.size >= self._settings.shard_size and line + 1 < len(page.lines):
                self._close(begun=(page.digest, line + 1))
        self._sources.append(SourceRecord.of(page))
        if self._writer is not None and self._writer.size >= self._settings.shard_size:
            self._close(begun=None)

    def _open(self) -> ArrowWriter | TarWriter:
        if self._writer is None:
            settings = self._settings
            path = self._folder / f"{self._number:06d}{SUFFIXES[settings.format]}"
            try:  # it would count for the new shard if this process were killed at the wrong moment
                record_path(self._folder, self._number).unlink(missing_ok=True)
            except OSError as error:
                raise write_error(path, error) from error
            writer: ArrowWriter | TarWriter
            if settings.format == "arrow":
                writer = ArrowWriter(
                    path,
                    line_type=settings.line_type,
                    legacy_polygons=settings.legacy_polygons,
                    recordbatch_size=settings.recordbatch_size,
                    height=settings.height,
                    normalized=settings.normalized,
                )
            else:
                writer = TarWriter(
                    path,
                    line_type=settings.line_type,
                    legacy_polygons=settings.legacy_polygons,
                    height=settings.height,
                    normalized=settings.normalized,
                )
            self._writer = writer.__enter__()
        return self._writer

    def _close(self, *, begun: tuple[bytes, int] | None) -> None:
        """Finish the shard, or write down what there is beside shards; the record makes it count."""
        if self._writer is None and not self._sources:
            return
        name, size, digest = None, 0, ""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.__exit__(None, None, None)
            name = writer.path.name
            try:
                size, digest = writer.path.stat().st_size, checksum_of(writer.path)
            except OSError as error:
                raise write_error(writer.path, error) from error
            write_index(index_path(self._folder, self._number), [_index(writer.path)])
        record = ShardRecord(
            name=name,
            size=size,
            checksum=digest,
            before=self._before,
            begun=begun,
            statistics=self._statistics,
        )
        record.write(record_path(self._folder, self._number), self._sources)
        self._number += 1
        self._before = 0 if begun is None else begun[1]
        self._statistics, self._sources = Statistics(), []


def _index(path: Path) -> pa.RecordBatch:
    if path.suffix == ".arrow":
        return index_arrow(path)
    batch, _ = index_tar(path)
    return batch


def kept_shards(
    shards: Sequence[WrittenShard], digests: Callable[[int], Generator[bytes, None, None]]
) -> tuple[int, Position]:
    """How many shards from the first on hold what the sources hold now, and where to go on after them.

    ``digests(n)`` are those of the first n sources as they are now.
    """
    kept, position = 0, Position()
    if not shards:
        return kept, position
    ending = sum(1 for shard in shards for _ in shard.sources())
    number = 0
    with closing(digests(ending + 1)) as now:
        current = next(now, None)
        for shard in shards:
            if shard.record.before != position.line:
                break
            for source in shard.sources():
                if source.digest != current:
                    return kept, position
                number += 1
                current = next(now, None)
            begun = shard.record.begun
            if begun is not None and begun[0] != current:
                break
            kept += 1
            position = Position(source=number, line=0 if begun is None else begun[1])
    return kept, position
