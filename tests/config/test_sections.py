"""The configuration: kraken's names and defaults, YAML in and out, and sentences for what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from distrib.config import sections
from distrib.config.experiment import dump_experiment, read_experiment
from distrib.config.fields import info_of, types_of
from distrib.config.learning import Pretrain, Train
from distrib.config.sections import SECTIONS, Globals
from distrib.config.values import make_section
from distrib.errors import InputError

# Parameter names, flags and defaults of kraken 7.1.1, recorded from its command line.
KRAKEN = yaml.safe_load((Path(__file__).parent / "kraken_options.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(KRAKEN))
def test_every_option_of_kraken_is_there_with_its_flags(name: str) -> None:
    section = Globals if name == "ketos" else SECTIONS[name]
    ours = {field.name: info_of(field) for field in dataclasses.fields(section)}
    for key, flags in KRAKEN[name].items():
        assert key in ours, f"{name}: kraken's option {key} is missing"
        assert set(flags) <= {*ours[key].flags, *ours[key].off_flags}, key


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (Train, "batch_size", 1),
        (Train, "padding", 16),
        (Train, "quit", "early"),
        (Train, "lag", 10),
        (Train, "optimizer", "AdamW"),
        (Train, "lrate", 1e-3),
        (Train, "partition", 0.9),
        (Train, "gradient_clip_val", 1.0),
        (Train, "normalize_whitespace", True),
        (Train, "bidi_reordering", True),
        (Train, "min_epochs", 0),
        (Pretrain, "batch_size", 64),
        (Pretrain, "min_epochs", 100),
        (Pretrain, "lrate", 1e-6),
        (Pretrain, "warmup", 32000),
        (Pretrain, "cos_min_lr", 1e-7),
        (sections.Test, "format_type", "xml"),
        (Globals, "precision", "32-true"),
    ],
)
def test_defaults_are_those_documented(section: type, key: str, value: object) -> None:
    assert getattr(section(), key) == value


def test_yaml_accepts_numbers_as_people_write_them() -> None:
    train = make_section(Train, "train", {"lrate": "1e-3", "epochs": 5.0, "cos_min_lr": 1})
    assert (train.lrate, train.epochs, train.cos_min_lr) == (1e-3, 5, 1.0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lrat": 1}, "`train.lrat` is not an option (did you mean `lrate`?)"),
        ({"lrate": 0}, "must be greater than 0"),
        ({"partition": 1.5}, "must be at most 1"),
        ({"batch_size": 2.5}, "must be a whole number, not 2.5"),
        ({"batch_size": True}, "must be a whole number"),
        ({"quit": "later"}, "allowed are early, fixed, aneal"),
        ({"augment": "yes"}, "must be true or false"),
        ({"training_data": 3}, "must be a list"),
        ({"lrate": None}, "is empty"),
        ({"spec": 7}, "must be text"),
        ({"lrate": "fast"}, "must be a number, not 'fast'"),
    ],
)
def test_wrong_values_get_a_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        make_section(Train, "train", values)
    assert sentence in str(error.value)


def test_later_layers_win() -> None:
    train = make_section(Train, "train", {"lrate": 0.1, "epochs": 3}, {"lrate": 0.2})
    assert (train.lrate, train.epochs) == (0.2, 3)


@pytest.mark.parametrize("name", list(SECTIONS))
def test_a_dump_reads_back_to_the_same_experiment(name: str, tmp_path: Path) -> None:
    section = make_section(SECTIONS[name], name)
    file = tmp_path / "experiment.yml"
    file.write_text(dump_experiment(Globals(precision="bf16-mixed"), name, section), encoding="utf-8")
    experiment = read_experiment(file)
    assert make_section(Globals, "", experiment.globals) == Globals(precision="bf16-mixed")
    assert make_section(SECTIONS[name], name, experiment.sections[name]) == section


def test_experiment_files_of_kraken_are_read(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yml"
    file.write_text(
        "device: cpu\nnum_workers: 4\nsegtrain:\n  epochs: 50\n"
        "train:\n  training_data:\n    - train.lst\n  codec: {a: [1], b: [2]}\n  rop_patience: 3\n",
        encoding="utf-8",
    )
    experiment = read_experiment(file)
    train = make_section(Train, "train", experiment.sections["train"])
    assert train.training_data == (Path("train.lst"),)
    assert train.codec == {"a": [1], "b": [2]}
    assert train.rop_patience == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("trian:\n  epochs: 3\n", "did you mean `train`?"),
        ("train: 3\n", "section `train` must hold options"),
        ("- a\n- b\n", "not an experiment file"),
        ("train:\n  epochs: [\n", "line 3: not a YAML experiment file"),
        ("train:\n  epohcs: 3\n", "did you mean `epochs`?"),
        ("precision: 33\n", "`precision` (--precision) is 33; allowed are"),
    ],
)
def test_wrong_experiment_files_get_a_sentence_with_the_file(
    content: str, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.yml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_experiment(file)
    assert sentence in str(error.value)
    assert str(file) in str(error.value)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    file = tmp_path / "hostile.yml"
    file.write_text("train: !!python/object/apply:os.system ['true']\n", encoding="utf-8")
    with pytest.raises(InputError):
        read_experiment(file)


def test_types_cover_every_field() -> None:
    for section in (Globals, *SECTIONS.values()):
        assert set(types_of(section)) == {field.name for field in dataclasses.fields(section)}
