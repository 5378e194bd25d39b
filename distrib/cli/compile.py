"""`ketos compile`."""

from __future__ import annotations

import click

from distrib.cli.options import require_sources, section_command
from distrib.config.sections import Compile, Globals


@section_command("compile")
def compile_command(globals_: Globals, options: Compile) -> None:
    """Compile ground truth into a binary data set.

    GROUND_TRUTH are ALTO or PageXML files, or line images with a .gt.txt beside each (-f path).
    """
    require_sources(
        options.ground_truth,
        options.files,
        remedy="No ground truth given: name files, or a file that lists them with -F.",
    )
    from distrib.cli.compiling import compile_with_progress, print_summary
    from distrib.ground_truth.sources import expand_sources
    from distrib.shards.compile import CompileJob

    sources = expand_sources(options.ground_truth, options.files, format_type=options.format_type)
    summary = compile_with_progress(
        CompileJob(
            sources=sources,
            output=options.output,
            format_type=options.format_type,
            linetype=options.linetype,
            force_type=options.force_type,
            skip_empty_lines=options.skip_empty_lines,
            recordbatch_size=options.recordbatch_size,
            legacy_polygons=options.legacy_polygons,
            workers=globals_.num_workers,
            report=options.report,
        )
    )
    print_summary(summary)
    if options.report is not None and summary.skipped:
        click.echo(f"each of them, with its reason: {options.report}", err=True)
