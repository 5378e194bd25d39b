"""`ketos test`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distrib.cli.display import plural, progress
from distrib.cli.options import require_sources, section_command
from distrib.config.sections import Globals, LineTypeName, Test
from distrib.errors import InputError
from distrib.files import check_output, written_whole

if TYPE_CHECKING:
    from distrib.model.weights import RecognitionModel
    from distrib.stream.lines import LineCollection
    from distrib.training.evaluation import Evaluation

_KEPT_FOR_JSON = 20


@section_command("test")
def test_command(globals_: Globals, options: Test) -> None:
    """Evaluate a model and report its errors.

    TEST_SET is what -f says: XML files, line images, or compiled data sets (-f binary).
    """
    if options.model is None:
        raise InputError("No model given: name a weights file or checkpoint with -m.")
    require_sources(
        options.test_set,
        options.test_data,
        remedy="No test data given: name files, or a file that lists them with -e.",
    )
    if options.json is not None and str(options.json) != "-":
        check_output(options.json, option="--json", replaces=b"{")
    from distrib.training.evaluation import evaluate
    from distrib.training.models import load_model

    model = load_model(options.model)
    with tempfile.TemporaryDirectory(prefix="ketos-test-") as directory:
        collection = _collection(globals_, options, model, Path(directory))
        if collection.line_type != model.seg_type:
            click.echo(
                f"Warning: {options.model} was trained on {model.seg_type} lines, the test set has "
                f"{collection.line_type} lines.",
                err=True,
            )
        with progress("Recognising") as show:
            evaluation = evaluate(
                model,
                collection,
                options,
                globals_,
                keep_worst=max(options.worst, _KEPT_FOR_JSON),
                on_batch=lambda done, total: show(done, total, "lines"),
            )
        for bad in evaluation.bad_lines:
            source, line_id = collection.place(bad.line)
            click.echo(f"left out: line {bad.line} ({source} {line_id}): {bad.reason}", err=True)
    if not evaluation.counts.lines:
        raise InputError("None of the test lines could be read; give others, or compile them again.")
    _print_report(options, evaluation)


def _collection(globals_: Globals, options: Test, model: RecognitionModel, directory: Path) -> LineCollection:
    from distrib.cli.compiling import open_data, open_storage

    model_type: LineTypeName = "bbox" if model.seg_type == "bbox" else "baselines"
    return open_data(
        arguments=options.test_set,
        manifests=options.test_data,
        format_type=options.format_type,
        linetype=options.linetype or (None if options.format_type in ("path", "binary") else model_type),
        legacy_polygons=model.legacy_polygons and not options.no_legacy_polygons,
        workers=globals_.num_workers,
        compiled=directory / "test.arrow",
        storage=open_storage(options.cache_dir, options.cache_size),
    )


def _print_report(options: Test, evaluation: Evaluation) -> None:
    from distrib.training.report import render_files, render_report, render_worst, report_json

    name, worst = str(options.model), evaluation.worst.worst_first()
    if options.json is not None:
        document = report_json(evaluation.counts, model_name=name, files=evaluation.files, worst=worst)
        text = json.dumps(document, ensure_ascii=False, indent=2)
        if str(options.json) == "-":
            click.echo(text)
            return
        with written_whole(options.json) as file:
            file.write(f"{text}\n".encode())
    click.echo(render_report(evaluation.counts, model_name=name))
    if options.per_file:
        click.echo(render_files(evaluation.files))
    if options.worst:
        click.echo(f"{plural(options.worst, 'line')} with the most errors")
        click.echo(render_worst(worst, options.worst))
