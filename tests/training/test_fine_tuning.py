"""Starting from trained weights: what is kept of them, and what a user is told before training."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distrib.config.choices import DEFAULT_SPEC
from distrib.config.learning import Train
from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel, load_weights, save_weights
from distrib.stream.lines import LineCollection
from distrib.training.fine_tuning import FineTuning, fine_tuning, mismatches, refuse_other_spec
from distrib.training.models import codec_notes, load_model, read_codec

from .conftest import TINY_SPEC
from .forked import Server
from .untrained import write_untrained

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,"
PATH = Path("m.safetensors")
WITH_DROPOUT = "[1,16,0,1 Cr3,3,4 Do S1(1x0)1,3 Lbx4 O1c3]"


def data(
    line_type: str = "baselines",
    *,
    source: str = "L",
    stored: str = "",
    height: int = 0,
    legacy: bool = False,
) -> LineCollection:
    """What of a data set fine-tuning looks at."""
    facts = SimpleNamespace(source_mode=source, im_mode=stored or source, normalized_height=height)
    return SimpleNamespace(  # type: ignore[return-value]
        line_type=line_type, legacy_polygons=legacy, bitonal=source == "1", datasets=(facts,)
    )


def model(spec: str = "[1,16,0,1 Cr3,3,4 S1(1x0)1,3 Lbx4 O1c3]", **changes: Any) -> RecognitionModel:
    return replace(
        RecognitionModel(
            network=VGSLNetwork(spec),
            codec=Codec.from_alphabet("ab"),
            seg_type="baselines",
            one_channel_mode="L",
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("weights") / "start.safetensors", seed=1)


def tune(
    path: Path, alphabet: str = LETTERS, collection: LineCollection | None = None, **options: Any
) -> FineTuning:
    return fine_tuning(Train(load=path, **options), path, collection or data(), Counter(alphabet))


# The alphabet.


@pytest.mark.parametrize("resize", ["union", "add"])
def test_union_keeps_every_row_to_the_bit(resize: str, weights: Path) -> None:
    """Broken: what was learned of the old characters is lost, or goes to others."""
    before, after = load_weights(weights), tune(weights, LETTERS + "ßö", resize=resize).model
    assert after.codec.c2l == {**before.codec.c2l, "ß": [56], "ö": [57]}
    for name, tensor in before.network.state_dict().items():
        assert torch.equal(after.network.state_dict()[name][: len(tensor)], tensor), name


@pytest.mark.parametrize("resize", ["new", "both"])
def test_new_keeps_the_rows_of_shared_characters(resize: str, weights: Path) -> None:
    before, after = load_weights(weights), tune(weights, "zebra!", resize=resize).model
    assert set(after.codec.c2l) == set("zebra!")
    assert after.network.num_classes == 7
    for name, tensor in before.network.state_dict().items():
        now = after.network.state_dict()[name]
        if ".lin." not in name:
            assert torch.equal(now, tensor), name
            continue
        assert torch.equal(now[0], tensor[0])
        for key in "zebra":
            assert torch.equal(now[after.codec.c2l[key][0]], tensor[before.codec.c2l[key][0]]), key


def test_the_difference_is_told_in_both_directions(weights: Path) -> None:
    alphabet = LETTERS.replace("q", "").replace(",", "") + "ßß" + "\u0301"
    found = tune(weights, alphabet, resize="union")
    assert found.notes == (
        "only in the training data, new to the model: ß (2) U+0301 (1)",
        "only in the loaded model, kept: , q",
    )
    assert "only in the loaded model, dropped: , q" in tune(weights, alphabet, resize="new").notes
    assert tune(weights).notes == ()
    with pytest.raises(InputError) as caught:
        tune(weights, alphabet)
    sentence = str(caught.value)
    assert sentence.startswith(f"{weights}: ")
    for words in (
        "'ß' (U+00DF, 2 times)",
        "U+0301, once",
        "only the model has ',' (U+002C), 'q'",
        "--resize",
    ):
        assert words in sentence


def test_old_names_of_resize_are_told_the_new_one(weights: Path) -> None:
    assert tune(weights, resize="add").warnings == (
        "--resize add is an old name, which is now --resize union; use that.",
    )
    assert "--resize new" in tune(weights, resize="both").warnings[0]
    assert tune(weights, resize="union").warnings == ()


# Weights of all kinds.


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["small.safetensors", "small.mlmodel"])
def test_weights_of_kraken_are_a_start(name: str, oracle_dir: Path) -> None:
    path = oracle_dir / name
    before = load_weights(path)
    after = tune(path, "".join(before.codec.c2l) + "€", resize="union").model
    for key, tensor in before.network.state_dict().items():
        assert torch.equal(after.network.state_dict()[key][: len(tensor)], tensor), key
    assert after.codec.c2l["€"] == [before.codec.max_label + 1]


def test_a_model_becomes_one_of_its_new_data(weights: Path) -> None:
    """Kraken would cut lines of its new kind in the old way."""
    stale = replace(load_weights(weights), metrics=[[1, {"val_accuracy": 0.5}]], accuracy=[[1, 0.5]])
    path = weights.with_name("stale.safetensors")
    save_weights(stale, path)
    found = tune(path, collection=data("bbox")).model
    assert (found.seg_type, found.metrics, found.accuracy) == ("bbox", [], [])
    assert found.legacy_polygons is False


@pytest.mark.parametrize("spec", ["[1,16,0,1 S1(1x0)1,3 Lbx4 O1s3]", "[1,16,0,1 Cr3,3,4 O2l3]"])
def test_other_output_layers_are_refused(spec: str, tmp_path: Path) -> None:
    save_weights(model(spec), tmp_path / "w")
    with pytest.raises(InputError, match=r"w: its network .* no CTC output layer"):
        tune(tmp_path / "w", "ab")


def test_another_spec_than_that_of_the_weights_is_refused(weights: Path) -> None:
    """It would be ignored without a word."""
    for spec in (DEFAULT_SPEC, TINY_SPEC, TINY_SPEC.replace("Lbx16", "Lbx{rnn}16")):
        tune(weights, spec=spec)
    refuse_other_spec("[1,16,0,1 Cr3,3,4,1,1 Do0.5,1 S1(1x0)1,3 Gbx4]", VGSLNetwork(WITH_DROPOUT))
    with pytest.raises(InputError, match="another network"):
        refuse_other_spec("[1,16,0,1 Cr3,3,4 Do0.4 S1(1x0)1,3 Lbx4]", VGSLNetwork(WITH_DROPOUT))
    with pytest.raises(InputError, match=r"--spec .*Lbx17.* than its weights are of, .*leave --spec out"):
        tune(weights, spec=TINY_SPEC.replace("16 ", "17 "))


# What of the data is not as the model knows it.


@pytest.mark.parametrize(
    ("changes", "lines", "words"),
    [
        ({"seg_type": "bbox"}, data(), "trained on bbox lines, the data hold baselines lines"),
        ({}, data("bbox"), "trained on baselines lines, the data hold bbox lines"),
        ({"one_channel_mode": "1"}, data(), "black and white images, the data are grey: they are binarised"),
        ({"one_channel_mode": "1"}, data(source="RGB", stored="L"), "data are colour: they are binarised"),
        ({}, data(source="1"), "grey images, the data are black and white"),
        ({"legacy_polygons": True}, data(), "extractor of kraken < 5, the data were cut with the present"),
        ({}, data(legacy=True), "present extractor, the data were cut with the extractor of kraken < 5"),
        ({}, data(height=48), "The data are stored 48 pixels high, m.safetensors takes lines of 16"),
    ],
)
def test_each_mismatch_is_a_sentence(changes: dict[str, Any], lines: LineCollection, words: str) -> None:
    (sentence,) = mismatches(model(**changes), lines, data="the data", path=PATH)
    assert words in sentence
    assert sentence.endswith(".")


def test_a_colour_model_is_told_of_grey_data() -> None:
    colour = model("[1,16,0,3 Cr3,3,4 S1(1x0)1,3 Lbx4 O1c3]", one_channel_mode=None)
    told = [
        mismatches(colour, data(source=source, stored=stored), data="the data", path=PATH)
        for source, stored in (("L", "L"), ("1", "1"), ("RGB", "L"), ("RGB", "RGB"))
    ]
    assert [len(each) for each in told] == [1, 1, 1, 0]
    assert ["grey" in told[0][0], "black and white" in told[1][0], "stored as grey" in told[2][0]] == [
        True
    ] * 3


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, data(source="RGB")),
        ({"one_channel_mode": None}, data(source="1")),
        ({"one_channel_mode": "1"}, data(source="1")),
        ({"seg_type": "bbox", "legacy_polygons": True}, data("bbox")),
        ({}, data(height=16)),
    ],
)
def test_what_fits_is_not_talked_of(changes: dict[str, Any], lines: LineCollection) -> None:
    """Warnings that come with every run are read by nobody."""
    assert mismatches(model(**changes), lines, data="the data", path=PATH) == []


def test_texts_and_padding_of_another_kind_are_told(weights: Path, tmp_path: Path) -> None:
    known = load_weights(weights)
    entry = {"format": 1, "configuration": {"normalization": "NFD", "padding": 8, "base_dir": "auto"}}
    known.file_metadata = {"provenance": json.dumps(entry)}
    save_weights(known, tmp_path / "w")
    assert tune(tmp_path / "w").warnings == (
        f"{tmp_path / 'w'} was trained with -u NFD --pad 8, this run is with -u none --pad 16.",
    )
    assert tune(tmp_path / "w", normalization="NFD", padding=8).warnings == ()
    # The run writes its own.
    assert tune(tmp_path / "w").model.file_metadata == {}


# The codec.


def codec_file(text: str, folder: Path) -> Path:
    (folder / "c.json").write_text(text, encoding="utf-8")
    return folder / "c.json"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "the codec is empty"),
        ('{"a": [1, 2], "b": [1]}', r"\[1, 2\] of 'a' begin with the labels \[1\] of 'b'"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there more than once, with 1 and 3"),
        ('{"a": 0}', r"'a' has the labels \[0\].*0 is the blank"),
        ('{"a": 1.5}', r"'a' has the labels \[1.5\]"),
        ('{"a": 9999999}', "labels up to 9999999; number them"),
        ("[1, 2]", "a JSON object"),
    ],
)
def test_an_invalid_codec_names_file_and_pair(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"c\.json: .*{words}"):
        read_codec(codec_file(text, tmp_path))


def test_a_codec_is_read_from_a_file_and_an_experiment_alike(tmp_path: Path) -> None:
    definition = {"a": [1, 2], "ch": [3]}
    path = codec_file("\ufeff" + json.dumps(definition), tmp_path)
    assert read_codec(path) == read_codec(definition) == definition
    with pytest.raises(InputError, match="--codec: codec: the key 1 "):
        read_codec({1: [1]})  # type: ignore[dict-item]


def test_labels_for_nothing_are_told_of() -> None:
    """kraken takes such codecs, so they are no error."""
    codec = Codec.from_mapping({"a": [2], "b": [30]})
    (note,) = codec_notes(Train(codec={"a": [2], "b": [30]}), codec)
    assert "1, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 18 more" in note
    assert codec_notes(Train(), codec) == ()


# Runs.


@pytest.mark.xdist_group("fine tuning")
def test_a_run_starts_from_what_was_loaded(
    server: Server, weights: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    """As one process and as two: at a learning rate of next to nothing rows come out as they went in."""
    options = ["-f", "binary", "-q", "fixed", "-N", 1, "-B", 4, "--global-batch-size", 8, "-r", 1e-30]
    found = []
    for processes in (1, 2):
        run = tmp_path / f"run-{processes}"
        printed = server.run(
            *("--workers", 0, "-d", "cpu", "train", *options, "-i", weights, "--resize", "add", "-o", run),
            lines_arrow,
            processes=processes,
        )
        assert printed.count("--resize add is an old name") == 1
        assert printed.count("trained on baselines lines, the training data hold bbox lines") == 1
        assert printed.index("new to the model: ") < printed.index("best model")
        (exported,) = run.glob("best_*.safetensors")
        found.append(load_weights(exported))
    before = load_weights(weights).network.state_dict()
    one, two = (each.network.state_dict() for each in found)
    for name, tensor in before.items():
        for after in (one[name], two[name]):
            assert torch.allclose(after[: len(tensor)], tensor, rtol=0, atol=1e-20), name
    assert found[0].codec == found[1].codec
    assert found[0].seg_type == "bbox"
    again = tmp_path / "again"
    checkpoint = shutil.copy(tmp_path / "run-1" / "last.ckpt", tmp_path / "c.ckpt")
    server.run("--workers", 0, "-d", "cpu", "train", *options, "-i", checkpoint, "-o", again, lines_arrow)
    assert load_model(Path(checkpoint)).codec == load_weights(next(again.glob("best_*"))).codec


def refused(server: Server, *words: object) -> str:
    job = server.start("--workers", 0, "-d", "cpu", "train", "-f", "binary", *words)
    assert job.wait() == [2], job.output
    (sentence,) = job.errors
    return sentence


@pytest.mark.xdist_group("fine tuning")
def test_a_run_that_cannot_start_so_says_why(
    server: Server, weights: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    sentence = refused(server, "-i", weights, "-o", run, lines_arrow)
    assert "the model lacks" in sentence
    assert "only the model has" in sentence
    other = [*("-i", weights, "-s", "[1,16,0,1 Cr3,3,8 S1(1x0)1,3 Lbx8]", "-o", run), lines_arrow]
    assert "leave --spec out" in refused(server, *other)
    assert "--codec cannot be given" in refused(server, "-i", weights, "-c", "c", "-o", run, lines_arrow)
    assert not run.exists()
