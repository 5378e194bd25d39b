"""`ketos train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
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
    from distrib.training.setup import Overview


_SHOWN_BAD_LINES = 20


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
    from distrib.training.options import check_options

    check_options(options, globals_)
    from distrib.runtime.run_directory import claimed_directory
    from distrib.training.setup import prepare

    with claimed_directory(options.checkpoint_path, resuming=_goes_on_in_place(options)):
        run = prepare(options, globals_, *_collections(globals_, options))
    _print_overview(run.overview)
    _store(globals_, options)
    from distrib.training.run import fit

    outcome = fit(run)
    if outcome.bad_lines:
        click.echo(f"{plural(len(outcome.bad_lines), 'line')} could not be used:", err=True)
        for (where, line), reason in list(outcome.bad_lines.items())[:_SHOWN_BAD_LINES]:
            collection = run.sets.training if where == "training" else run.sets.validation
            source, line_id = collection.place(line)
            click.echo(f"  {where} line {line} ({source} {line_id}): {reason}", err=True)
    click.echo(f"best model: accuracy {outcome.score:.2%}, {outcome.weights}")


def _goes_on_in_place(options: Train) -> bool:
    """Whether the run directory is that of the checkpoint to resume."""
    if options.resume is None:
        return False
    directory = options.resume if options.resume.is_dir() else options.resume.parent
    return options.checkpoint_path.resolve() == directory.resolve()


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
    stored = dataclasses.replace(
        options,
        resume=None,
        training_data=_absolute(options.training_data),
        evaluation_data=_absolute(options.evaluation_data),
        ground_truth=tuple(map(str, _absolute(options.ground_truth))),
    )
    with written_whole(options.checkpoint_path / STORED_NAME) as file:
        file.write(dump_experiment(globals_, "train", stored).encode())


def _absolute(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    return tuple(Path(path).absolute() for path in paths)


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
    if overview.unknown:
        click.echo(f"only in validation, cannot be learned: {' '.join(map(printable, overview.unknown))}")
    theirs = [character for character in theirs if character not in overview.unknown]
    if theirs:
        click.echo(f"only in validation, known to the model: {' '.join(map(printable, theirs))}")
    if ours:
        click.echo(f"only in training, not measured: {' '.join(map(printable, ours))}")
    if overview.training.empty.size:
        click.echo(f"left out: {plural(overview.training.empty.size, 'line')} without text")
    if overview.narrow:
        click.echo(f"left out: {plural(overview.narrow, 'line')} too narrow for their text (CTC)")
    click.echo(f"network {overview.spec}, {plural(overview.parameters, 'parameter')}")
