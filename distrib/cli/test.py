"""`ketos test`."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from distrib.cli.display import progress
from distrib.cli.options import require_sources, section_command
from distrib.config.choices import LineTypeName
from distrib.config.sections import Globals, Test
from distrib.errors import InputError
from distrib.files import check_output, write_error, written_whole
from distrib.wording import plural

if TYPE_CHECKING:
    from distrib.model.weights import RecognitionModel
    from distrib.runtime.processes import Processes
    from distrib.stream.lines import LineCollection
    from distrib.training.evaluation import Evaluation

_KEPT_FOR_JSON = 20


@section_command("test")
def test_command(globals_: Globals, options: Test) -> None:
    """Evaluate a model and report its errors.

    TEST_SET is what -f says: XML files, line images, or compiled data sets (-f binary).
    """
    from distrib.runtime.preflight.stages import Preflight
    from distrib.runtime.processes import joined
    from distrib.runtime.topology import topology_of

    with joined(
        topology_of(os.environ),
        device=globals_.device,
        timeout=globals_.rendezvous_timeout,
        environ=os.environ,
    ) as processes:
        preflight = Preflight(processes, warn=lambda sentence: click.echo(sentence, err=True))
        preflight.machines(workers=globals_.num_workers)
        processes.agree(lambda: _check(options, processes))
        preflight.devices(globals_.device)
        evaluation = _evaluate(globals_, options, processes)
        processes.on_first(lambda: _print_report(options, evaluation))


def _check(options: Test, processes: Processes) -> None:
    """Raise InputError for what cannot be, before any work."""
    if options.model is None:
        raise InputError("No model given: name a weights file or checkpoint with -m.")
    require_sources(
        options.test_set,
        options.test_data,
        remedy="No test data given: name files, or a file that lists them with -e.",
    )
    if processes.topology.first and options.json is not None and str(options.json) != "-":
        check_output(options.json, option="--json", replaces=b"{")
    if processes.topology.nodes > 1 and options.format_type != "binary":
        raise InputError(
            f"-f {options.format_type} on {processes.topology.nodes} nodes: compile the test set with `ketos "
            "compile` to a disk that all nodes share, and give that with -f binary."
        )


def _evaluate(globals_: Globals, options: Test, processes: Processes) -> Evaluation:
    """The errors over all processes, known to each; rank zero does the talking."""
    from distrib.training.evaluation import evaluate

    assert options.model is not None
    path, first = options.model, processes.topology.first
    model = processes.agree(lambda: _recogniser(options, path))
    with _scratch_folder(processes) as directory:
        collection = _collection(globals_, options, model, directory, processes)
        if first:
            _print_warnings(options, model, collection)
        with progress("Recognising") if first else nullcontext() as show:
            evaluation = evaluate(
                model,
                collection,
                options,
                globals_,
                processes=processes,
                keep_worst=max(options.worst, _KEPT_FOR_JSON),
                on_batches=None if show is None else lambda done, total: show(done, total, "lines"),
            )
        if first:
            _print_unread(evaluation, collection)
    return evaluation


def _recogniser(options: Test, path: Path) -> RecognitionModel:
    """The model to test. Raises InputError for one that cannot read lines, or does not know how."""
    from distrib.model.pretrained import is_pretrained
    from distrib.model.resize import ctc_layer
    from distrib.training.models import load_model
    from distrib.training.reading import reading_of

    model = load_model(path)
    if is_pretrained(model):
        raise InputError(
            f"{path}: a pretrained network, which cannot read yet; train it with `ketos train --load {path}`."
        )
    try:
        ctc_layer(model.network)
        reading_of(options, model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return model


@contextmanager
def _scratch_folder(processes: Processes) -> Iterator[Path]:
    """A temporary folder of rank zero, where the other processes of its node can read.

    It is removed at the end, on SIGTERM too: a scheduler's, or a launcher's where another process failed.
    """

    def leave(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    with ExitStack() as stack:

        def enter() -> Path:
            if threading.current_thread() is threading.main_thread():
                stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, leave))
            try:
                return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ketos-test-")))
            except OSError as error:
                raise write_error(Path(tempfile.gettempdir()), error) from error

        yield processes.on_first(enter)


def _collection(
    globals_: Globals, options: Test, model: RecognitionModel, directory: Path, processes: Processes
) -> LineCollection:
    from distrib.cli.compiling import open_data, open_storage

    model_type: LineTypeName = "bbox" if model.seg_type == "bbox" else "baselines"
    storage = processes.agree(lambda: open_storage(options.cache_dir, options.cache_size))
    return open_data(
        arguments=options.test_set,
        manifests=options.test_data,
        format_type=options.format_type,
        linetype=options.linetype or (None if options.format_type in ("path", "binary") else model_type),
        legacy_polygons=model.legacy_polygons and not options.no_legacy_polygons,
        workers=globals_.num_workers,
        compiled=directory / "test.arrow",
        storage=storage,
        processes=processes,
    )


def _print_warnings(options: Test, model: RecognitionModel, collection: LineCollection) -> None:
    """What of the data is not as the model knows it, and what it knows that nobody has asked for."""
    from distrib.training.fine_tuning import mismatches
    from distrib.training.reading import reading_of

    assert options.model is not None
    for problem in collection.problems:
        click.echo(problem, err=True)
    for sentence in mismatches(model, collection, data="the test data", path=options.model):
        click.echo(f"Warning: {sentence}", err=True)
    reading = reading_of(options, model)
    if reading.recorded:
        click.echo(f"reading with {reading}, as {options.model} was trained", err=True)


def _print_unread(evaluation: Evaluation, collection: LineCollection) -> None:
    named = evaluation.unread.in_order()
    for bad in named:
        source, line_id = collection.place(bad.line)
        click.echo(f"left out: line {bad.line} ({source} {line_id}): {bad.reason}", err=True)
    if evaluation.unread.count > len(named):
        click.echo(f"left out: {plural(evaluation.unread.count - len(named), 'more line')}", err=True)


def _print_report(options: Test, evaluation: Evaluation) -> None:
    from distrib.training.report import render_files, render_report, render_worst, report_json

    name, worst = str(options.model), evaluation.worst.worst_first()
    if options.json is not None:
        document = report_json(
            evaluation.counts,
            model_name=name,
            files=evaluation.files,
            worst=worst,
            unread=evaluation.unread.count,
        )
        text = json.dumps(document, ensure_ascii=False, indent=2)
        if str(options.json) == "-":
            click.echo(text)
            return
        try:
            with written_whole(options.json) as file:
                file.write(f"{text}\n".encode())
        except OSError as error:
            raise write_error(options.json, error) from error
    click.echo(render_report(evaluation.counts, model_name=name))
    if options.per_file:
        click.echo(render_files(evaluation.files))
    if options.worst:
        click.echo(f"{plural(options.worst, 'line')} with the most errors")
        click.echo(render_worst(worst, options.worst))
