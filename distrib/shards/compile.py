"""Compiling: ground truth files to one Arrow data set, in parallel and in the order of the files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distrib.errors import InputError, RunError
from distrib.files import check_output
from distrib.ground_truth.reader import read_line_images
from distrib.ground_truth.records import FormatType, LineType, Skip, SkipReason
from distrib.shards.arrow_schema import MAGIC
from distrib.shards.arrow_writer import ArrowWriter
from distrib.shards.ordered import WorkerDied, map_ordered
from distrib.shards.pack import PAIRS_A_TASK, LineReader, PackedPage, PackTask, pack
from distrib.shards.skip_report import SkipReport

ForcedType = Literal["bbox", "baseline"]


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """What to compile and how.

    ``linetype`` None means baselines for XML; line pairs (``path``) are always bbox. ``force_type`` only
    relabels the data set. ``workers`` processes extract and encode; with 0 or 1 this process does it all.
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


@dataclass
class _Tally:
    sources: int = 0
    pages: int = 0
    lines: int = 0
    skipped: Counter[SkipReason] = field(default_factory=Counter)
    examples: dict[SkipReason, Skip] = field(default_factory=dict)
    causes: Counter[SkipReason] = field(default_factory=Counter)
    """Why sources gave no line at all: one reason a source."""
    cause_examples: dict[SkipReason, Skip] = field(default_factory=dict)

    def add(self, page: PackedPage) -> None:
        self.sources += 1
        self.pages += bool(page.lines)
        self.lines += len(page.lines)
        for skip in page.skips:
            self.skipped[skip.reason] += 1
            self.examples.setdefault(skip.reason, skip)
        if page.skips and not page.lines:
            cause = _cause(page.skips)
            self.causes[cause.reason] += 1
            self.cause_examples.setdefault(cause.reason, cause)


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
    _check_paths(job)
    tally = _Tally()
    writer = ArrowWriter(
        job.output,
        line_type=job.line_type,
        legacy_polygons=job.legacy_polygons,
        recordbatch_size=job.recordbatch_size,
    )
    with SkipReport(job.report) as report:
        with writer, closing(_packed_pages(job, read)) as pages:
            for page in pages:
                for line in page.lines:
                    writer.add(line)
                report.add(page.skips)
                tally.add(page)
                if on_page is not None:
                    on_page(_progress(job, tally))
            if not tally.lines:
                report.commit()
                raise _nothing_usable(job, tally)
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


def _packed_pages(job: CompileJob, read: LineReader) -> Generator[PackedPage, None, None]:
    """Every source's page in order. Raises RunError where a worker was killed."""
    try:
        with closing(map_ordered(pack, _tasks(job, read), workers=job.workers)) as results:
            for pages in results:
                yield from pages
    except WorkerDied as error:
        suspects = [source for task in error.suspects for source in task.sources]
        raise RunError(
            "A worker ended without a result, most likely killed for want of memory, at "
            f"{_enumerate(suspects)}; use fewer --workers or give the job more memory."
        ) from error


def _tasks(job: CompileJob, read: LineReader) -> Iterator[PackTask]:
    size = PAIRS_A_TASK if job.format_type == "path" and job.workers > 1 else 1
    for start in range(0, len(job.sources), size):
        yield PackTask(
            sources=job.sources[start : start + size],
            format_type=job.format_type,
            linetype=job.linetype,
            legacy_polygons=job.legacy_polygons,
            skip_empty_lines=job.skip_empty_lines,
            read=read,
        )


def _check_paths(job: CompileJob) -> None:
    """Raises InputError for outputs that would destroy the ground truth or each other."""
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
    check_output(job.output, replaces=MAGIC)
    if job.report is not None and job.report.resolve() == job.output.resolve():
        raise InputError(f"--report and -o are both {job.output}; choose two names.")


def _progress(job: CompileJob, tally: _Tally) -> CompileProgress:
    return CompileProgress(
        pages=tally.sources, total=len(job.sources), lines=tally.lines, skipped=tally.skipped.total()
    )


def _cause(skips: Sequence[Skip]) -> Skip:
    """The skip that best says why a source gave nothing: of the source itself, or of most of its lines."""
    whole = next((skip for skip in skips if skip.line_id is None), None)
    if whole is not None:
        return whole
    commonest, _ = Counter(skip.reason for skip in skips).most_common(1)[0]
    return next(skip for skip in skips if skip.reason is commonest)


def _nothing_usable(job: CompileJob, tally: _Tally) -> InputError:
    """The error that says why, by the commonest reason and the first file it befell."""
    if not tally.causes:
        return InputError(
            f"Nothing to compile: there are no lines in {_enumerate(job.sources)}; give others."
        )
    reason, count = tally.causes.most_common(1)[0]
    example = tally.cause_examples[reason]
    detail = example.detail.rstrip(".")
    if str(example.source) not in detail:
        where = (
            f"{example.source}" if example.line_id is None else f"line {example.line_id} of {example.source}"
        )
        detail = f"{where}: {detail}"
    remedy = "; --keep-empty-lines keeps lines without text" if reason is SkipReason.EMPTY_TEXT else ""
    if len(job.sources) == 1:
        return InputError(f"Nothing to compile ({reason}): {detail}{remedy}.")
    return InputError(
        f"Nothing to compile in {len(job.sources)} files, {count} of them for {reason}: "
        f"such as {detail}{remedy}."
    )


def _enumerate(sources: Sequence[Path]) -> str:
    if len(sources) <= 3:
        return ", ".join(map(str, sources))
    return f"{sources[0]} and {len(sources) - 1} more files"
