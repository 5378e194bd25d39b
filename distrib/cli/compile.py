"""`ketos compile`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from distrib.cli.options import require_sources, section_command
from distrib.config.sections import Compile, Globals
from distrib.errors import InputError

if TYPE_CHECKING:
    from distrib.runtime.topology import Topology
    from distrib.shards.compiling.compile import CompileJob, CompileSummary


@section_command("compile")
def compile_command(globals_: Globals, options: Compile) -> None:
    """Compile ground truth into a binary data set.

    GROUND_TRUTH are ALTO or PageXML files, or line images with a .gt.txt beside each (-f path). With
    --shard-format the data set is a folder of shards, which several processes can write together.
    """
    require_sources(
        options.ground_truth,
        options.files,
        remedy="No ground truth given: name files, or a file that lists them with -F.",
    )
    from distrib.cli.compiling import compile_with_progress, print_summary
    from distrib.config.sizes import parse_size
    from distrib.ground_truth.sources import expand_sources
    from distrib.runtime.topology import topology_of
    from distrib.shards.compiling.compile import CompileJob

    shard_size = parse_size(options.shard_size, option="--shard-size")
    place = topology_of(os.environ)
    sharded = options.shard_format is not None
    if not sharded and place.world_size > 1:
        raise InputError(
            f"{place.world_size} processes cannot write one file together; give --shard-format, or start one."
        )
    job = CompileJob(
        sources=expand_sources(options.ground_truth, options.files, format_type=options.format_type),
        output=options.output,
        format_type=options.format_type,
        linetype=options.linetype,
        force_type=options.force_type,
        skip_empty_lines=options.skip_empty_lines,
        recordbatch_size=options.recordbatch_size,
        legacy_polygons=options.legacy_polygons,
        workers=globals_.num_workers,
        report=options.report,
        normalized=options.lines == "normalized" or (options.lines == "auto" and sharded),
        height=options.height,
        shard_format=options.shard_format,
        shard_size=shard_size,
    )
    summary = compile_with_progress(job) if job.shard_format is None else _compile_shards(job, place)
    if summary is None:
        return
    print_summary(summary)
    if summary.shards:
        _print_shards(summary)
    if options.report is not None and summary.skipped:
        click.echo(f"each of them, with its reason: {options.report}", err=True)


def _compile_shards(job: CompileJob, place: Topology) -> CompileSummary | None:
    """Compile this process's share; the summary of the whole at rank zero, which alone shows progress."""
    from distrib.cli.display import progress
    from distrib.shards.compiling.compile_shards import compile_shards
    from distrib.wording import plural

    if place.rank != 0:
        return compile_shards(job, rank=place.rank, world_size=place.world_size)
    with progress("Compiling") as show:
        return compile_shards(
            job,
            world_size=place.world_size,
            on_page=lambda at: show(at.pages, at.total, f"files, {plural(at.lines, 'line')}"),
        )


def _print_shards(summary: CompileSummary) -> None:
    from distrib.wording import plural, size

    reused = f"; {plural(summary.reused, 'file')} reused" if summary.reused else ""
    mean = size(summary.bytes / summary.shards)
    click.echo(f"{plural(summary.shards, 'shard')} of {mean} on average{reused}")
