"""Compiling: ground truth files to one Arrow data set, in parallel and in the order of the files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from distrib.errors import InputError, RunError
from distrib.files import check_output
from distrib.ground_truth.reader import read_line_images
from distrib.ground_truth.records import FormatType, LineType, Skip, SkipReason
from distrib.shards.arrow_schema import MAGIC
from distrib.shards.compiling.arrow_writer import ArrowWriter
from distrib.shards.compiling.ordered import WorkerDied, map_ordered
from distrib.shards.compiling.pack import PAIRS_A_TASK, LineReader, PackedPage, PackTask, pack
from distrib.shards.compiling.skip_report import SkipReport
from distrib.shards.compiling.tally import Tally, enumerate_sources, nothing_usable
from distrib.shards.manifest import ShardFormat

ForcedType = Literal["bbox", "baseline"]
Result = TypeVar("Result")

DEFAULT_HEIGHT: Final = 120
"""Height in pixels of the input of the default network."""


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """What to compile and how.

    ``linetype`` None means baselines for XML; line pairs (``path``) are always bbox. ``force_type`` only
    relabels the data set. Lines are stored as cut, or ``normalized`` as network input of ``height`` pixels;
    the width of the others as such input is noted where it is known. With a ``shard_format`` the output is a
    folder of shards of about ``shard_size`` bytes (see shards.compile_shards), else a single Arrow file.
    ``workers`` processes extract and encode; with 0 or 1 this process does it all.
    ``report`` names a file for what was left out.
    """

    sources: Sequence[Path]
    output: Path
    format_type: FormatType = "xml"
    linetype: LineType | None = None
    force_type: ForcedType | None = None
    skip_empty_lines: bool = True
    recordbatch_size: int = 100
    legacy_polygons: bool = False
    workers: int = 1
    report: Path | None = None
    normalized: bool = False
    height: int = DEFAULT_HEIGHT
    shard_format: ShardFormat | None = None
    shard_size: int = 256 << 20

    @property
    def line_type(self) -> LineType:
        """The type written to the metadata."""
        if self.force_type is not None:
            return "bbox" if self.force_type == "bbox" else "baselines"
        if self.format_type == "path":
            return "bbox"
        return self.linetype or "baselines"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileProgress:
    """How far a compilation is: ``pages`` of ``total`` sources done, what they gave and did not."""

    pages: int
    total: int
    lines: int
    skipped: int


@dataclass(frozen=True, kw_only=True)
class CompileSummary:
    """What was compiled.

    ``pages`` are the sources that gave lines, of ``sources`` read. ``skipped`` counts files and lines left
    out, by reason; ``examples`` holds the first of each reason. ``bytes`` is the size of ``output``.
    """

    sources: int
    pages: int
    lines: int
    characters: int
    alphabet: Counter[str]
    skipped: Counter[SkipReason]
    examples: dict[SkipReason, Skip]
    output: Path
    bytes: int
    seconds: float
    shards: int = 0
    reused: int = 0


def compile_dataset(
    job: CompileJob,
    *,
    on_page: Callable[[CompileProgress], None] | None = None,
    read: LineReader = read_line_images,
) -> CompileSummary:
    """Compile ground truth into one data set; the same bytes for every number of workers.

    Files and lines that cannot be used are left out, counted and reported. The output appears when it is
    whole; the report also when nothing could be used. ``on_page`` is called after every source.
    Memory holds a record batch and a few pages a worker, however many sources there are.

    Raises:
        InputError: an output path cannot be written, or no line of the ground truth can be used.
        RunError: a worker was killed, or a disk is full.
    """
    started = time.monotonic()
    check_sources(job)
    check_output(job.output, replaces=MAGIC)
    tally = Tally()
    writer = ArrowWriter(
        job.output,
        line_type=job.line_type,
        legacy_polygons=job.legacy_polygons,
        recordbatch_size=job.recordbatch_size,
        height=job.height,
        normalized=job.normalized,
    )
    with SkipReport(job.report) as report:
        with writer, closing(packed_pages(job, job.sources, read)) as pages:
            for page in pages:
                for line in page.lines:
                    writer.add(line)
                report.add(page.skips)
                tally.add(len(page.lines), page.skips)
                if on_page is not None:
                    on_page(_progress(job, tally))
            if not tally.lines:
                report.commit()
                raise nothing_usable(tally, job.sources)
        report.commit()
    return CompileSummary(
        sources=tally.sources,
        pages=tally.pages,
        lines=tally.lines,
        characters=writer.alphabet.total(),
        alphabet=writer.alphabet,
        skipped=tally.skipped,
        examples=tally.examples,
        output=job.output,
        bytes=job.output.stat().st_size,
        seconds=time.monotonic() - started,
    )


def packed_pages(
    job: CompileJob,
    sources: Sequence[Path],
    read: LineReader,
    *,
    digest_settings: bytes | None = None,
    known: Path | None = None,
) -> Generator[PackedPage, None, None]:
    """The pages of ``sources`` in order; see PackTask. Raises RunError where a worker was killed."""
    tasks = pack_tasks(job, sources, read, digest_settings=digest_settings, known=known)
    yield from in_workers(pack, tasks, job)


def in_workers(
    function: Callable[[PackTask], list[Result]], tasks: Iterable[PackTask], job: CompileJob
) -> Generator[Result, None, None]:
    """What ``function`` makes of each source, in order. Raises RunError where a worker was killed."""
    try:
        with closing(map_ordered(function, tasks, workers=job.workers)) as results:
            for of_task in results:
                yield from of_task
    except WorkerDied as error:
        suspects = [source for task in error.suspects for source in task.sources]
        raise RunError(
            "A worker ended without a result, most likely killed for want of memory, at "
            f"{enumerate_sources(suspects)}; use fewer --workers or give the job more memory."
        ) from error


def pack_tasks(
    job: CompileJob,
    sources: Sequence[Path],
    read: LineReader,
    *,
    digest_settings: bytes | None = None,
    known: Path | None = None,
) -> Iterator[PackTask]:
    """``sources`` cut into tasks for workers."""
    size = PAIRS_A_TASK if job.format_type == "path" and job.workers > 1 else 1
    for start in range(0, len(sources), size):
        yield PackTask(
            sources=sources[start : start + size],
            format_type=job.format_type,
            line_type=job.line_type,
            linetype=job.linetype,
            legacy_polygons=job.legacy_polygons,
            skip_empty_lines=job.skip_empty_lines,
            height=job.height,
            normalized=job.normalized,
            digest_settings=digest_settings,
            known=known,
            read=read,
        )


def check_sources(job: CompileJob) -> None:
    """Raises InputError without sources, and for outputs that would destroy them or each other."""
    if not job.sources:
        raise InputError(
            "There is no ground truth to compile; name files, or a file that lists them with -F."
        )
    for option, path in (("-o", job.output), ("--report", job.report)):
        if path is None:
            continue
        for source in job.sources:
            if source.name == path.name and path.exists() and source.exists() and source.samefile(path):
                raise InputError(f"{option} {path} is one of the ground truth files; choose another name.")
    if job.report is not None and job.report.resolve() == job.output.resolve():
        raise InputError(f"--report and -o are both {job.output}; choose two names.")


def _progress(job: CompileJob, tally: Tally) -> CompileProgress:
    return CompileProgress(
        pages=tally.sources, total=len(job.sources), lines=tally.lines, skipped=tally.skipped.total()
    )
