"""Lines compiled before, found again by the digest of their source and copied instead of extracted anew.

They come from the data set that is to be replaced and from what compilations that did not end left in the
work folder. What is held in memory is some thirty bytes a source.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from distrib.errors import InputError
from distrib.files import write_error, written_whole
from distrib.ground_truth.records import BaseDirection, Skip, Split
from distrib.shards.arrow import SPLIT_CODES
from distrib.shards.compiling.arrow_writer import PackedLine
from distrib.shards.compiling.output_folder import SOURCES
from distrib.shards.compiling.pack import PackedPage
from distrib.shards.compiling.part import written_shards
from distrib.shards.compiling.shard_records import DamagedRecord, Run, SourceRecord
from distrib.shards.compiling.source_digest import digest_key
from distrib.shards.index import DatasetIndex, IndexEntry, open_index, write_index
from distrib.shards.manifest import MANIFEST_NAME, read_manifest

_SPLITS: Final[dict[int, Split]] = {code: split for split, code in SPLIT_CODES.items()}
_MERGED: Final = "merged.index"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a source's record is, and the number of its first line in its origin."""

    record_file: Path
    offset: int
    first: int


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A set of shards to copy from; ``places`` are of the sources all of whose lines are in them."""

    index: DatasetIndex
    shards: Sequence[Path]
    places: Callable[[], Iterator[tuple[SourceRecord, _Place]]]


class _UnusableLine(ValueError):
    """A line of an origin that is not what its index says."""


def dataset_origin(folder: Path) -> Origin | None:
    """What is in a data set of ours; None where it is damaged, which costs no more than time."""
    try:
        manifest = read_manifest(folder / MANIFEST_NAME)
        index = open_index(folder / manifest.index.name)
    except (InputError, OSError):
        return None
    shards = [folder / shard.name for shard in manifest.shards]
    return Origin(index=index, shards=shards, places=lambda: _places(folder / SOURCES, skip=0, first=0))


def part_origin(folder: Path) -> Origin | None:
    """What is in the whole shards of a part; None where there are none."""
    shards = [shard for shard in written_shards(folder) if shard.record.name is not None]
    if not shards:
        return None
    try:
        write_index(folder / _MERGED, (shard.index() for shard in shards))
        index = open_index(folder / _MERGED)
    except (InputError, OSError):
        return None

    def places() -> Iterator[tuple[SourceRecord, _Place]]:
        first = 0
        for shard in shards:
            # The shard's first source may have begun in one before, which may be lost.
            begin = first - shard.record.before
            yield from _places(shard.record_path, skip=1, first=begin)
            first += shard.record.statistics.lines

    return Origin(index=index, shards=[shard.path for shard in shards], places=places)


def _places(path: Path, *, skip: int, first: int) -> Iterator[tuple[SourceRecord, _Place]]:
    """The sources of a file of records after ``skip`` lines of it, until one is damaged."""
    try:
        with path.open("rb") as file:
            for _ in range(skip):
                file.readline()
            while True:
                offset = file.tell()
                line = file.readline()
                if not line:
                    return
                record = SourceRecord.from_json(line)
                if first >= 0:
                    yield record, _Place(record_file=path, offset=offset, first=first)
                first += record.lines
    except (OSError, DamagedRecord):
        return


class ReusePool:
    """Everything that can be reused, from ``origins``; earlier ones are preferred.

    ``normalized`` says whether images are normalised lines: those are grey whatever their source was.
    """

    def __init__(self, origins: Iterable[Origin], *, normalized: bool) -> None:
        self._origins = list(origins)
        self._normalized = normalized
        self._files: list[Path] = []
        self._open_shard: tuple[Path, int] | None = None
        self._load()

    def close(self) -> None:
        """Close the shard that was read last."""
        if self._open_shard is not None:
            os.close(self._open_shard[1])
            self._open_shard = None

    def __len__(self) -> int:
        """Number of sources whose lines can be reused."""
        return len(self._keys)

    def write_keys(self, path: Path) -> None:
        """Write the keys of all digests, sorted uint64, as ``pack`` looks them up. Raises KetosError."""
        try:
            with written_whole(path) as file:
                file.write(self._keys.tobytes())
        except OSError as error:
            raise write_error(path, error) from error

    def take(self, source: Path, digest: bytes) -> PackedPage | None:
        """The page that a source of this digest gave; None if there is none or its lines are damaged."""
        key = np.uint64(digest_key(digest))
        row = int(np.searchsorted(self._keys, key, side="left"))
        while row < len(self._keys) and self._keys[row] == key:
            try:
                return self._read(row, source, digest)
            except (OSError, ValueError, InputError):
                row += 1
        return None

    def _load(self) -> None:
        keys, origins, files = array("Q"), array("i"), array("i")
        offsets, firsts = array("q"), array("q")
        for number, origin in enumerate(self._origins):
            for record, place in origin.places():
                if not self._files or self._files[-1] != place.record_file:
                    self._files.append(place.record_file)
                keys.append(digest_key(record.digest))
                origins.append(number)
                files.append(len(self._files) - 1)
                offsets.append(place.offset)
                firsts.append(place.first)
        unsorted = np.array(keys, dtype=np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self._keys: npt.NDArray[np.uint64] = unsorted[order]
        self._of_origin = np.array(origins, dtype=np.int32)[order]
        self._of_file = np.array(files, dtype=np.int32)[order]
        self._offsets = np.array(offsets, dtype=np.int64)[order]
        self._firsts = np.array(firsts, dtype=np.int64)[order]

    def _read(self, row: int, source: Path, digest: bytes) -> PackedPage:
        with self._files[self._of_file[row]].open("rb") as file:
            file.seek(int(self._offsets[row]))
            record = SourceRecord.from_json(file.readline())
        if record.digest != digest or sum(count for count, _, _ in record.runs) != record.lines:
            raise _UnusableLine("the record is not that of the source")
        origin = self._origins[self._of_origin[row]]
        lines, number = [], int(self._firsts[row])
        for count, mode, languages in record.runs:
            for line in range(number, number + count):
                lines.append(self._line(origin, line, source, (count, mode, languages)))
            number += count
        skips = tuple(_moved(skip, record.source, source) for skip in record.skips)
        return PackedPage(source=source, lines=tuple(lines), skips=skips, digest=digest, known=True)

    def _line(self, origin: Origin, line: int, source: Path, run: Run) -> PackedLine:
        entry = origin.index.entry(line)
        _, source_mode, languages = run
        line_id = entry.line_id or ""
        return PackedLine(
            text=entry.text,
            png=self._image(origin.shards[entry.shard], entry),
            source=source.name,
            # The index has '?' for the bytes of a file name that are not UTF-8; a pair's id is its file name.
            line_id=source.name if line_id == _storable_name(source) else line_id,
            width=entry.width,
            height=entry.height,
            mode="L" if self._normalized else source_mode,
            languages=languages,
            split=_SPLITS.get(entry.split),
            base_dir=cast("BaseDirection | None", entry.base_dir),
            columns=entry.columns,
            source_mode=source_mode,
        )

    def _image(self, shard: Path, entry: IndexEntry) -> bytes:
        if self._open_shard is None or self._open_shard[0] != shard:
            self.close()
            self._open_shard = (shard, os.open(shard, os.O_RDONLY))
        png = os.pread(self._open_shard[1], entry.size, entry.offset) if entry.offset >= 0 else b""
        if len(png) != entry.size or zlib.crc32(png) != entry.crc:
            raise _UnusableLine(f"{shard} is damaged")
        return png


def _storable_name(source: Path) -> str:
    return source.name.encode("utf-8", "replace").decode("utf-8")


def _moved(skip: Skip, before: Path, now: Path) -> Skip:
    """A skip of a source that was ``before`` and is ``now``, its sentence too."""
    detail = skip.detail
    if before != now:
        detail = detail.replace(str(before), str(now))
        if before.parent != Path():
            detail = detail.replace(f"{before.parent}{os.sep}", f"{now.parent}{os.sep}")
    return replace(skip, source=now, detail=detail)
