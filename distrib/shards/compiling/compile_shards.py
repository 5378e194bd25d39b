"""Compiling to a folder of shards: by several processes, continued where it was, unchanged pages copied.

The list of sources is cut into one contiguous share a process, so that the order of lines is that of the
sources whatever the number of processes. Each writes its share to a part of its own in the work folder; rank
zero waits for all, puts the parts together and lets the new data set take the place of the old one.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from distrib.errors import InputError
from distrib.files import check_output, write_error
from distrib.ground_truth.reader import read_line_images
from distrib.shards.compiling.compile import (
    CompileJob,
    CompileProgress,
    CompileSummary,
    check_sources,
    in_workers,
    pack_tasks,
    packed_pages,
)
from distrib.shards.compiling.merge import Merged, merge_parts
from distrib.shards.compiling.output_folder import OutputFolder
from distrib.shards.compiling.pack import LineReader, PackedPage, digests, pack
from distrib.shards.compiling.part import PartWriter, ShardSettings, WrittenShard, kept_shards, written_shards
from distrib.shards.compiling.peers import Peers, PeerTimes, Progress
from distrib.shards.compiling.reuse import Origin, ReusePool, dataset_origin, part_origin
from distrib.shards.compiling.source_digest import EXTRACTION_VERSION
from distrib.shards.compiling.work_folder import WorkFolder

OnPage = Callable[[CompileProgress], None]


def compile_shards(
    job: CompileJob,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_page: OnPage | None = None,
    read: LineReader = read_line_images,
    times: PeerTimes | None = None,
) -> CompileSummary | None:
    """Compile ground truth into a folder of shards with ``world_size`` processes; the summary at rank zero.

    All processes are given the same job. The data set appears when it is whole; one that was there stays
    until then. What a killed compilation finished is kept, and what it or the data set before holds of
    unchanged files is copied. ``on_page`` is called after every source, at rank zero with what all have done.

    Raises:
        InputError: the output cannot be a folder of shards or is in use, or no line can be used.
        RunError: a worker or another process was killed, or the disk is full.
    """
    started = time.monotonic()
    settings = _shard_settings(job)
    output = OutputFolder(job.output)
    check_sources(job)
    output.check()
    _check_report(job, output)
    task = _digest(_digest_settings(job), repr(settings), world_size, *map(str, job.sources)).hex()
    peers = Peers(
        output.work / "peers", rank=rank, world_size=world_size, task=task, times=times or PeerTimes()
    )
    with peers:
        compiler = _Compiler(job=job, settings=settings, output=output, peers=peers, read=read)
        show = compiler.shown(on_page)
        if rank != 0:
            compiler.follow(show)
            return None
        try:
            merged, reused = compiler.lead(task, show)
        except BaseException as error:
            compiler.clean_up(error)
            raise
        peers.finish()
        peers.wait_for_leaving()
        output.discard_work()
    return CompileSummary(
        sources=merged.tally.sources,
        pages=merged.tally.pages,
        lines=merged.statistics.lines,
        characters=merged.statistics.characters,
        alphabet=merged.statistics.alphabet,
        skipped=merged.tally.skipped,
        examples=merged.tally.examples,
        output=job.output,
        bytes=merged.bytes,
        seconds=time.monotonic() - started,
        shards=merged.shards,
        reused=reused,
    )


@dataclass(frozen=True, kw_only=True)
class _Compiler:
    """One process's part in it."""

    job: CompileJob
    settings: ShardSettings
    output: OutputFolder
    peers: Peers
    read: LineReader

    @property
    def work(self) -> WorkFolder:
        return WorkFolder(self.output)

    def lead(self, task: str, show: Callable[[Progress], None]) -> tuple[Merged, int]:
        """Rank zero: prepare the folder, do a share, put all together; the number of sources reused."""
        try:
            self.output.repair()
        except OSError as error:
            raise write_error(self.job.output, error) from error
        self.output.check()
        self.work.prepare(task)
        self.peers.agree()
        reused = self.compile_share(show)
        reused += self.peers.wait_for_shares(show)
        merged = merge_parts(
            self.work,
            parts=self.peers.world_size,
            sources=self.job.sources,
            settings=self.settings,
            report=self.job.report,
        )
        try:
            self.output.publish()
        except OSError as error:
            raise write_error(self.job.output, error) from error
        return merged, reused

    def follow(self, show: Callable[[Progress], None]) -> None:
        """Any other rank: do a share and wait for the data set."""
        self.peers.agree()
        self.peers.finish_share(self.compile_share(show))
        self.peers.wait_for_finish()

    def clean_up(self, error: BaseException) -> None:
        """Leave nothing behind that is not worth going on from."""
        alone = self.peers.world_size == 1
        if (alone or isinstance(error, InputError)) and self.work.is_worthless():
            if not alone:
                self.peers.tell_failure(error)
                self.peers.wait_for_leaving()
            self.output.discard_work()

    def compile_share(self, show: Callable[[Progress], None]) -> int:
        """Write this process's part; the number of sources that were not read anew."""
        count, rank, size = len(self.job.sources), self.peers.rank, self.peers.world_size
        share = range(count * rank // size, count * (rank + 1) // size)
        folder = self.work.begin_part(rank)
        written = list(written_shards(folder))
        kept, position = kept_shards(written, lambda first: self._digests(share[:first]))
        self.work.set_aside(written[kept:])
        progress = _progress_of(written[:kept])
        reused = position.source
        begin = share.start + position.source
        with closing(ReusePool(self._origins(), normalized=self.job.normalized)) as pool:
            writer = PartWriter(folder, self.settings, number=kept, first=position)
            with writer, closing(self._pages(share[position.source :], pool)) as pages:
                for number, page in enumerate(pages, begin):
                    writer.add(page, number=number, start=position.line if number == begin else 0)
                    reused += page.known
                    progress = _advanced(progress, page)
                    show(progress)
        return reused

    def shown(self, on_page: OnPage | None) -> Callable[[Progress], None]:
        """A function that tells the others how far this process is, and the caller how far all are."""

        def show(progress: Progress) -> None:
            at = self.peers.report(progress)
            if on_page is not None:
                on_page(
                    CompileProgress(
                        pages=at.pages, total=len(self.job.sources), lines=at.lines, skipped=at.skipped
                    )
                )

        return show

    def _pages(self, share: range, pool: ReusePool) -> Generator[PackedPage, None, None]:
        """The pages of the sources of a share, those that can be reused taken from ``pool``."""
        sources = self.job.sources[share.start : share.stop]
        settings = _digest_settings(self.job)
        known = None
        if len(pool):
            known = self.work.part(self.peers.rank) / f".{secrets.token_hex(4)}.part"
            pool.write_keys(known)
        try:
            pages = packed_pages(self.job, sources, self.read, digest_settings=settings, known=known)
            with closing(pages):
                for page in pages:
                    taken = pool.take(page.source, page.digest) if page.known else page
                    yield taken if taken is not None else self._extract(page.source, settings)
        finally:
            if known is not None:
                known.unlink(missing_ok=True)

    def _extract(self, source: Path, settings: bytes) -> PackedPage:
        (task,) = pack_tasks(self.job, [source], self.read, digest_settings=settings)
        (page,) = pack(task)
        return page

    def _digests(self, share: range) -> Generator[bytes, None, None]:
        sources = self.job.sources[share.start : share.stop]
        settings = _digest_settings(self.job)
        with closing(
            in_workers(digests, pack_tasks(self.job, sources, self.read, digest_settings=settings), self.job)
        ) as found:
            yield from found

    def _origins(self) -> Iterator[Origin]:
        for folder in self.work.previous_parts():
            if (origin := part_origin(folder)) is not None:
                yield origin
        if self.output.exists and (origin := dataset_origin(self.output.path)) is not None:
            yield origin


def _shard_settings(job: CompileJob) -> ShardSettings:
    if job.shard_format is None:
        raise ValueError("a folder of shards needs a shard format")
    if job.shard_size < 1:
        raise InputError(f"--shard-size is {job.shard_size}; give bytes with K, M or G, such as 256M.")
    return ShardSettings(
        format=job.shard_format,
        shard_size=job.shard_size,
        line_type=job.line_type,
        legacy_polygons=job.legacy_polygons,
        recordbatch_size=job.recordbatch_size,
        height=job.height,
        normalized=job.normalized,
    )


def _digest_settings(job: CompileJob) -> bytes:
    """What the lines of a source depend on beside its files."""
    return _digest(
        EXTRACTION_VERSION,
        job.format_type,
        job.linetype,
        job.line_type,
        job.legacy_polygons,
        job.skip_empty_lines,
        job.height,
        job.normalized,
    )


def _digest(*values: object) -> bytes:
    content = json.dumps([value.hex() if isinstance(value, bytes) else value for value in values])
    return blake2b(content.encode(), digest_size=16).digest()


def _check_report(job: CompileJob, output: OutputFolder) -> None:
    if job.report is None:
        return
    if job.report.resolve().parent == output.path:
        raise InputError(f"--report {job.report} is in the folder of the data set; choose another place.")
    check_output(job.report, option="--report", replaces=b"{")


def _progress_of(shards: list[WrittenShard]) -> Progress:
    sources = [(source.lines, len(source.skips)) for shard in shards for source in shard.sources()]
    lines = sum(shard.record.statistics.lines for shard in shards)
    return Progress(pages=len(sources), lines=lines, skipped=sum(skips for _, skips in sources))


def _advanced(progress: Progress, page: PackedPage) -> Progress:
    return Progress(
        pages=progress.pages + 1,
        lines=progress.lines + len(page.lines),
        skipped=progress.skipped + len(page.skips),
    )
