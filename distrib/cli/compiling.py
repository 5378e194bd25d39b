"""Compiling with progress and summary, as `compile` does and as `train` and `test` do where needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distrib.cli.display import plural, progress, size

if TYPE_CHECKING:
    from distrib.config.sections import DataFormat, LineTypeName
    from distrib.shards.compile import CompileJob, CompileSummary
    from distrib.stream.lines import LineCollection


def compile_with_progress(job: CompileJob) -> CompileSummary:
    """Run a compile job, showing how far it is."""
    from distrib.shards.compile import compile_dataset

    with progress("Compiling") as show:
        return compile_dataset(
            job, on_page=lambda at: show(at.pages, at.total, f"files, {plural(at.lines, 'line')}")
        )


def print_summary(summary: CompileSummary) -> None:
    """What was compiled, and what was left out by reason with an example of each."""
    click.echo(
        f"{plural(summary.lines, 'line')} of {plural(summary.pages, 'file')}, "
        f"{plural(summary.characters, 'character')}, alphabet of {len(summary.alphabet)}, "
        f"{size(summary.bytes)} in {summary.seconds:.1f} s: {summary.output}"
    )
    for reason, count in summary.skipped.most_common():
        example = summary.examples[reason]
        place = f"{example.source}" + (f", line {example.line_id}" if example.line_id else "")
        click.echo(f"left out: {count:,} {reason}, such as {place}", err=True)


def open_data(
    *,
    arguments: Sequence[str],
    manifests: Sequence[Path],
    format_type: DataFormat,
    linetype: LineTypeName | None,
    legacy_polygons: bool,
    workers: int,
    compiled: Path,
    reuse: bool = False,
) -> LineCollection:
    """The lines that a command's arguments and manifests name.

    Ground truth is compiled to ``compiled`` first, unless ``reuse`` and it was compiled before.
    """
    from distrib.ground_truth.sources import expand_sources
    from distrib.shards.compile import CompileJob
    from distrib.stream.lines import open_collection

    if reuse and compiled.is_file():
        return open_collection([compiled])
    sources = expand_sources(arguments, manifests, format_type=format_type)
    if format_type == "binary":
        return open_collection(sources)
    compiled.parent.mkdir(parents=True, exist_ok=True)
    job = CompileJob(
        sources=sources,
        output=compiled,
        format_type=format_type,
        linetype=linetype,
        legacy_polygons=legacy_polygons,
        workers=workers,
        report=compiled.with_suffix(".skipped.jsonl"),
    )
    print_summary(compile_with_progress(job))
    return open_collection([compiled])
