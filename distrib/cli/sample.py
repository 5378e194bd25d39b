"""`ketos sample`."""

from __future__ import annotations

from pathlib import Path

import click

from distrib.wording import plural


@click.command("sample", short_help="Draw a small set of sample ground truth.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--pairs", type=click.IntRange(min=0), default=240, show_default=True, help="Line pairs.")
@click.option(
    "--pages",
    type=click.IntRange(min=0),
    default=6,
    show_default=True,
    help="Pages, half ALTO and half PageXML.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Seed of the drawing."
)
def sample_command(directory: Path, pairs: int, pages: int, seed: int) -> None:
    """Draw a small, deterministic set of ground truth into DIRECTORY.

    Line pairs, ALTO and PageXML pages: enough to try every command without a download.
    """
    from distrib.ground_truth.sample import write_sample

    summary = write_sample(directory, pairs=pairs, pages=pages, seed=seed)
    click.echo(
        f"{plural(summary.pairs, 'line pair')}, {plural(summary.pages, 'page')} with "
        f"{plural(summary.page_lines, 'line')}, alphabet of {len(summary.alphabet)}: {directory}"
    )
