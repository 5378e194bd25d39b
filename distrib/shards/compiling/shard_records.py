"""What is remembered of a shard and of the sources in it: enough to continue, to reuse and to merge.

A record file holds one JSON object a line: the shard's, then one for every source that ends in the shard,
in order. A shard counts as written once its record is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from distrib.files import write_error, written_whole
from distrib.ground_truth.records import Skip, SkipReason
from distrib.shards.arrow_schema import IMAGE_MODES, ImageMode
from distrib.shards.compiling.arrow_writer import PackedLine
from distrib.shards.compiling.pack import PackedPage
from distrib.shards.compiling.statistics import Statistics

Run = tuple[int, ImageMode, tuple[str, ...]]
"""So many lines in a row with this source mode and these languages, which an index does not hold."""


class DamagedRecord(ValueError):
    """A record that this program did not write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRecord:
    """A source that has been compiled: the number of its lines, and what was left out of it."""

    source: Path
    digest: bytes
    lines: int
    skips: tuple[Skip, ...] = ()
    runs: tuple[Run, ...] = ()

    @classmethod
    def of(cls, page: PackedPage) -> SourceRecord:
        """The record of a page."""
        return cls(
            source=page.source,
            digest=page.digest,
            lines=len(page.lines),
            skips=page.skips,
            runs=tuple(_runs(page.lines)),
        )

    def to_json(self, *, first: int | None = None) -> bytes:
        """One line; ``first`` is the number of its first line in the data set."""
        values: dict[str, Any] = {"source": str(self.source), "digest": self.digest.hex()}
        if first is not None:
            values["first"] = first
        values["lines"] = self.lines
        values["skips"] = [[skip.line_id, skip.reason.value, skip.detail] for skip in self.skips]
        values["runs"] = [[count, mode, list(languages)] for count, mode, languages in self.runs]
        # ASCII, so that a file name that is not UTF-8 survives as an escaped lone surrogate.
        return json.dumps(values).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> SourceRecord:
        """Raises DamagedRecord."""
        try:
            values = json.loads(line)
            source = Path(values["source"])
            skips = tuple(
                Skip(
                    source=source,
                    line_id=None if line_id is None else str(line_id),
                    reason=SkipReason(reason),
                    detail=str(detail),
                )
                for line_id, reason, detail in values["skips"]
            )
            return cls(
                source=source,
                digest=bytes.fromhex(values["digest"]),
                lines=int(values["lines"]),
                skips=skips,
                runs=tuple((int(count), _mode(mode), tuple(names)) for count, mode, names in values["runs"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedRecord(f"not a source's record ({error})") from error


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A shard that is whole. ``name`` None: no shard, but sources without lines at the end of a part.

    ``before`` is how many lines of its first source are in earlier shards. ``begun`` are the digest and the
    number of lines so far of a source that goes on in the next shard.
    """

    name: str | None
    size: int
    checksum: str
    before: int
    begun: tuple[bytes, int] | None
    statistics: Statistics

    def write(self, path: Path, sources: Iterable[SourceRecord]) -> None:
        """Write this record and those of the sources that end in the shard. Raises KetosError."""
        begun = None if self.begun is None else [self.begun[0].hex(), self.begun[1]]
        values = {
            "name": self.name,
            "bytes": self.size,
            "checksum": self.checksum,
            "before": self.before,
            "begun": begun,
            "statistics": self.statistics.to_json(),
        }
        try:
            with written_whole(path) as file:
                file.write(json.dumps(values).encode() + b"\n")
                file.writelines(source.to_json() for source in sources)
        except OSError as error:
            raise write_error(path, error) from error

    @classmethod
    def read(cls, path: Path) -> ShardRecord:
        """The record at ``path``, without those of its sources. Raises OSError and DamagedRecord."""
        with path.open("rb") as file:
            line = file.readline()
        try:
            values = json.loads(line)
            begun = values["begun"]
            return cls(
                name=None if values["name"] is None else str(values["name"]),
                size=int(values["bytes"]),
                checksum=str(values["checksum"]),
                before=int(values["before"]),
                begun=None if begun is None else (bytes.fromhex(begun[0]), int(begun[1])),
                statistics=Statistics.from_json(values["statistics"]),
            )
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise DamagedRecord(f"{path} is damaged ({error})") from error


def read_sources(path: Path) -> Iterator[SourceRecord]:
    """The sources of a record file, one after the other. Raises OSError and DamagedRecord."""
    with path.open("rb") as file:
        file.readline()
        yield from map(SourceRecord.from_json, file)


def _runs(lines: Sequence[PackedLine]) -> Iterator[Run]:
    for (mode, languages), group in groupby(
        lines, lambda line: (line.source_mode or line.mode, line.languages)
    ):
        yield sum(1 for _ in group), mode, languages


def _mode(name: object) -> ImageMode:
    for mode in IMAGE_MODES:
        if name == mode:
            return mode
    raise ValueError(f"unknown image mode {name!r}")
