"""How a model reads text stands in its weights file, and `ketos test` goes by that unless told otherwise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from distrib.cli.main import ketos
from distrib.config.learning import Train
from distrib.config.sections import Test as Options
from distrib.errors import InputError
from distrib.ground_truth.sample import write_sample
from distrib.ground_truth.text import TextPipeline
from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel, load_weights, save_weights
from distrib.training.models import load_model
from distrib.training.reading import READING, reading_of, recorded_options

SPEC = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx8]"
UNUSUAL = {
    "normalization": "NFD",
    "normalize_whitespace": False,
    "bidi_reordering": False,
    "base_dir": "R",
    "padding": 5,
}
FLAGS = ["-u", "NFD", "--no-normalize-whitespace", "--no-reorder", "--base-dir", "R", "--pad", "5"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(ketos, ["--workers", "0", "-d", "cpu", *map(str, arguments)], prog_name="ketos")


def model(configuration: Any = None) -> RecognitionModel:
    entry = {"format": 1} | ({} if configuration is None else {"configuration": configuration})
    return RecognitionModel(
        network=VGSLNetwork("[1,8,0,1 S1(1x0)1,3 Lbx2 O1c3]"),
        codec=Codec.from_alphabet("ab"),
        file_metadata={"provenance": json.dumps(entry)},
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model trained in an unusual way, and its data."""
    root = tmp_path_factory.mktemp("world")
    write_sample(root / "sample", pairs=12, pages=1)
    lines, run = root / "lines.arrow", root / "run"
    invoke("compile", "-f", "path", "-o", lines, *sorted((root / "sample" / "lines").glob("*.png")))
    few = ["-f", "binary", "-B", 4, "-q", "fixed", "-N", 1, "-s", SPEC, "-o", run]
    trained = invoke("train", *few, *FLAGS, lines)
    assert trained.exit_code == 0, trained.output
    (weights,) = run.glob("best_*.safetensors")
    coreml = root / "model.mlmodel"
    converted = invoke("convert", "-o", coreml, "--weights-format", "coreml", weights)
    assert converted.exit_code == 0, converted.output
    return SimpleNamespace(root=root, lines=lines, weights=weights, coreml=coreml, last=run / "last.ckpt")


def report_of(*words: object) -> tuple[dict[str, Any], str]:
    """The report of a test, and what it said besides."""
    done = invoke("test", "-f", "binary", "--json", "-", *words)
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report, done.stderr


# What a file says.


def test_what_is_recorded_is_what_is_read_by() -> None:
    reading = reading_of(Options(), model(UNUSUAL))
    assert reading.pipeline == TextPipeline(
        normalization="NFD", normalize_whitespace=False, reorder=False, base_dir="R"
    )
    assert reading.padding == 5
    assert str(reading) == "-u NFD --no-normalize-whitespace --no-reorder --base-dir R --pad 5"


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("normalization", "NFC", "NFC"),
        ("normalization", "none", None),
        ("normalize_whitespace", True, True),
        ("bidi_reordering", True, True),
        ("base_dir", "auto", "auto"),
        ("padding", 0, 0),
    ],
)
def test_an_option_that_is_given_counts(name: str, given: Any, found: Any) -> None:
    """Though it is the default: who gives it means it."""
    reading = reading_of(Options(**{name: given}), model(UNUSUAL))
    assert getattr(reading.options, name) == found
    assert {other: getattr(reading.options, other) for other in READING if other != name} == {
        other: value for other, value in UNUSUAL.items() if other != name
    }
    assert name not in reading.recorded


@pytest.mark.parametrize("silent", [None, {}, [], "text", {"lrate": 1}])
def test_a_file_that_does_not_say_leaves_the_defaults(silent: Any) -> None:
    """Weights of kraken would be read otherwise than by kraken."""
    for reading in (reading_of(Options(), model(silent)), reading_of(Options())):
        standard = {name: getattr(Train(), name) for name in READING}
        assert {name: getattr(reading.options, name) for name in READING} == standard
        assert str(reading) == ""


def test_the_provenance_of_other_programs_is_no_error() -> None:
    foreign = dataclasses.replace(model(), file_metadata={"provenance": "by hand"})
    assert recorded_options(foreign) == {}


@pytest.mark.parametrize(
    "damaged", [{"normalization": "NFX"}, {"padding": -1}, {"padding": "9"}, {"bidi_reordering": 1}]
)
def test_a_damaged_record_is_refused_unless_it_is_not_needed(damaged: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"how it was trained is damaged.*give --"):
        reading_of(Options(), model(damaged))
    given = {"normalization": "none", "padding": 16, "bidi_reordering": True}
    assert reading_of(Options(**given), model(damaged)).padding == 16


def test_options_left_open_stay_open_in_a_dumped_experiment(tmp_path: Path) -> None:
    """A launched test, which is handed over as an experiment, would not go by the weights file."""
    dumped = invoke("test", "--dump-config").output
    assert [yaml.safe_load(dumped)["test"][name] for name in READING] == [None] * 5
    (tmp_path / "e.yml").write_text(dumped, encoding="utf-8")
    assert invoke("--config", tmp_path / "e.yml", "test", "--dump-config").output == dumped
    given = invoke("test", *FLAGS, "--dump-config").output
    assert {name: yaml.safe_load(given)["test"][name] for name in READING} == UNUSUAL


# A model from end to end.


def test_a_test_goes_by_the_weights_file(world: SimpleNamespace) -> None:
    """Of whatever format, and by the checkpoint, it is what it is with all options given."""
    expected, said = report_of("-m", world.weights, *FLAGS, world.lines)
    assert "reading with" not in said
    for path in (world.weights, world.coreml, world.last):
        report, said = report_of("-m", path, world.lines)
        assert said.count(f"reading with {' '.join(FLAGS)}, as {path} was trained") == 1
        assert {**report, "model": ""} == {**expected, "model": ""}
    assert {"\u0300", "\u0301", "\u0308"} & set(expected["alphabet"])


def test_a_test_told_otherwise_does_so(world: SimpleNamespace) -> None:
    report, said = report_of("-m", world.weights, "-u", "NFC", "--pad", "16", world.lines)
    assert not {"\u0300", "\u0301", "\u0308"} & set(report["alphabet"])
    assert "reading with --no-normalize-whitespace --no-reorder --base-dir R, as" in said


def test_an_experiment_file_tells_as_well(world: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "e.yml").write_text("test: {normalization: NFC}", encoding="utf-8")
    done = invoke("--config", tmp_path / "e.yml", "test", "-f", "binary", "-m", world.weights, world.lines)
    assert "-u " not in done.stderr
    assert "--pad 5" in done.stderr


def test_weights_without_provenance_are_read_as_ever(world: SimpleNamespace, tmp_path: Path) -> None:
    bare = load_weights(world.weights)
    bare.file_metadata = {}
    save_weights(bare, tmp_path / "w")
    report, said = report_of("-m", tmp_path / "w", world.lines)
    assert "reading with" not in said
    assert not {"\u0300", "\u0301", "\u0308"} & set(report["alphabet"])


def test_a_checkpoint_says_what_its_weights_file_says(world: SimpleNamespace) -> None:
    assert recorded_options(load_model(world.last)) == recorded_options(load_model(world.weights)) == UNUSUAL


def test_a_model_that_cannot_read_is_refused(world: SimpleNamespace, tmp_path: Path) -> None:
    network = VGSLNetwork("[1,16,0,1 Cr3,3,4 O2l3]")
    save_weights(RecognitionModel(network=network, codec=Codec.from_alphabet("ab")), tmp_path / "w")
    done = invoke("test", "-f", "binary", "-m", tmp_path / "w", world.lines)
    assert done.exit_code == 2
    assert "no CTC output layer" in done.stderr
