"""`ketos train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distrib.cli.display import plural
from distrib.cli.options import require_sources, section_command
from distrib.config.experiment import STORED_NAME, dump_experiment
from distrib.config.sections import Globals, Train
from distrib.files import written_whole

if TYPE_CHECKING:
    from distrib.stream.lines import LineCollection
    from distrib.training.run import Overview


@section_command("train")
def train_command(globals_: Globals, options: Train) -> None:
    """Train a recognition model.

    GROUND_TRUTH is what -f says: XML files, line images, or compiled data sets (-f binary).
    """
    require_sources(
        options.ground_truth,
        options.training_data,
        remedy="No training data given: name files, or a file that lists them with -t.",
    )
    from distrib.runtime.run_directory import claimed_directory
    from distrib.training.run import check_options, train

    check_options(options, globals_)
    with claimed_directory(options.checkpoint_path, resuming=options.resume is not None):
        training, validation = _collections(globals_, options)
        _store(globals_, options)
        outcome = train(options, globals_, training, validation, on_overview=_print_overview)
    if outcome.bad_lines:
        click.echo(f"{plural(len(outcome.bad_lines), 'line')} could not be read during training.", err=True)
        for line, reason in outcome.bad_lines[:5]:
            source, line_id = training.place(line)
            click.echo(f"  line {line} ({source} {line_id}): {reason}", err=True)
    click.echo(f"best model: accuracy {outcome.score:.2%}, {outcome.weights}")


def _collections(globals_: Globals, options: Train) -> tuple[LineCollection, LineCollection | None]:
    from distrib.cli.compiling import open_data

    compiled = options.checkpoint_path / "data"

    def collection(arguments: tuple[str, ...], manifests: tuple[Path, ...], name: str) -> LineCollection:
        return open_data(
            arguments=arguments,
            manifests=manifests,
            format_type=options.format_type,
            linetype=options.linetype,
            legacy_polygons=options.legacy_polygons,
            workers=globals_.num_workers,
            compiled=compiled / f"{name}.arrow",
            reuse=options.resume is not None,
        )

    training = collection(options.ground_truth, options.training_data, "training")
    validation = None
    if options.evaluation_data:
        validation = collection((), options.evaluation_data, "validation")
    return training, validation


def _store(globals_: Globals, options: Train) -> None:
    """Keep the resolved experiment in the run directory, so that a resume needs no other option."""
    stored = dataclasses.replace(options, resume=None)
    with written_whole(options.checkpoint_path / STORED_NAME) as file:
        file.write(dump_experiment(globals_, "train", stored).encode())


def _print_overview(overview: Overview) -> None:
    """What is trained on, before the first step."""
    from distrib.training.preparation import alphabet_difference, describe_alphabet, printable

    characters = overview.training.alphabet
    click.echo(
        f"training on {plural(overview.training_lines, 'line')}, {plural(characters.total(), 'character')}; "
        f"validating on {plural(overview.validation_lines, 'line')}, {overview.origin}"
    )
    click.echo(f"alphabet of {len(characters)}: {describe_alphabet(characters)}")
    ours, theirs = alphabet_difference(characters, overview.validation.alphabet)
    if theirs:
        click.echo(f"only in validation, cannot be learned: {' '.join(map(printable, theirs))}")
    if ours:
        click.echo(f"only in training, not measured: {' '.join(map(printable, ours))}")
    if overview.empty:
        click.echo(f"left out: {plural(overview.empty, 'line')} without text")
    if overview.narrow:
        click.echo(f"left out: {plural(overview.narrow, 'line')} too narrow for their text (CTC)")
    click.echo(f"network {overview.spec}, {plural(overview.parameters, 'parameter')}")
