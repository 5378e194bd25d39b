"""From the parts that processes wrote to one data set: shards renumbered, indexes and counts put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from distrib import __version__
from distrib.errors import RunError
from distrib.files import write_error, written_whole
from distrib.shards.compiling.output_folder import INDEX, SOURCES
from distrib.shards.compiling.part import ShardSettings, WrittenShard, written_shards
from distrib.shards.compiling.shard_records import DamagedRecord
from distrib.shards.compiling.skip_report import SkipReport
from distrib.shards.compiling.statistics import Statistics, sorted_counts
from distrib.shards.compiling.tally import Tally, nothing_usable
from distrib.shards.compiling.work_folder import WorkFolder
from distrib.shards.index import write_index
from distrib.shards.manifest import (
    MANIFEST_NAME,
    DatasetManifest,
    ManifestIndex,
    ManifestShard,
    ManifestSources,
    checksum_of,
    write_manifest,
)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The data set as a whole; ``bytes`` are those of its shards."""

    statistics: Statistics
    tally: Tally
    shards: int
    bytes: int


def merge_parts(
    work: WorkFolder, *, parts: int, sources: Sequence[Path], settings: ShardSettings, report: Path | None
) -> Merged:
    """Make the data set in the work folder; the manifest, written last, makes it whole.

    Raises:
        InputError: no part has a line; the report is written all the same.
        RunError: the disk is full, or records are missing.
    """
    written = [shard for rank in range(parts) for shard in written_shards(work.part(rank))]
    statistics, tally = Statistics(), Tally()
    for shard in written:
        statistics.merge(shard.record.statistics)
    try:
        work.dataset.mkdir(exist_ok=True)
        with SkipReport(report) as skip_report:
            digest = _write_sources(work.dataset / SOURCES, written, tally, skip_report)
            if tally.sources != len(sources):
                raise RunError(f"{work.path} lacks records of files; remove that folder and compile again.")
            skip_report.commit()
        if not statistics.lines:
            raise nothing_usable(tally, sources)
        named = list(_named(written))
        write_index(work.dataset / INDEX, (shard.index() for _, shard in named))
        work.move_shards(dict(named))
        manifest = _manifest(work.dataset, named, statistics, settings, _sources(len(sources), digest))
        write_manifest(work.dataset / MANIFEST_NAME, manifest)
    except OSError as error:
        raise write_error(work.dataset, error) from error
    except DamagedRecord as error:
        raise RunError(f"{error}; remove {work.path} and compile again.") from error
    size = sum(shard.record.size for _, shard in named)
    return Merged(statistics=statistics, tally=tally, shards=len(named), bytes=size)


def _write_sources(path: Path, written: Sequence[WrittenShard], tally: Tally, report: SkipReport) -> str:
    """The list of all sources with their lines' numbers; its digest."""
    digest = blake2b(digest_size=16)
    first = 0
    with written_whole(path) as file:
        for shard in written:
            for source in shard.sources():
                file.write(source.to_json(first=first))
                digest.update(source.digest)
                tally.add(source.lines, source.skips)
                report.add(source.skips)
                first += source.lines
    return f"blake2b:{digest.hexdigest()}"


def _named(written: Sequence[WrittenShard]) -> Iterator[tuple[str, WrittenShard]]:
    shards = (shard for shard in written if shard.record.name is not None)
    for number, shard in enumerate(shards):
        yield f"{number:06d}{shard.path.suffix}", shard


def _sources(count: int, digest: str) -> ManifestSources:
    return ManifestSources(count=count, digest=digest, file=SOURCES)


def _manifest(
    folder: Path,
    named: Sequence[tuple[str, WrittenShard]],
    statistics: Statistics,
    settings: ShardSettings,
    sources: ManifestSources,
) -> DatasetManifest:
    shards = tuple(
        ManifestShard(
            name=name,
            lines=shard.record.statistics.lines,
            bytes=shard.record.size,
            checksum=shard.record.checksum,
        )
        for name, shard in named
    )
    index = folder / INDEX
    return DatasetManifest(
        format=settings.format,
        line_type=settings.line_type,
        im_mode=statistics.im_mode,
        source_mode=statistics.source_mode,
        legacy_polygons=settings.legacy_polygons,
        height=settings.height,
        normalized=settings.normalized,
        lines=statistics.lines,
        characters=statistics.characters,
        alphabet=sorted_counts(statistics.alphabet),
        languages=sorted_counts(statistics.languages),
        splits=statistics.split_counts(),
        width_histogram=statistics.histogram(),
        shards=shards,
        index=ManifestIndex(name=INDEX, bytes=index.stat().st_size, checksum=checksum_of(index)),
        sources=sources,
        created_by={"program": "ketos-distrib", "version": __version__},
    )
