"""`ketos pretrain` from text-less data to a network that `ketos train` goes on with, at any world size."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from distrib.ground_truth.sample import write_sample
from distrib.model.pretrained import NO_ALPHABET
from distrib.model.weights import load_weights
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.training.models import load_model

from .forked import Harm, Server
from .launching import rows, unlike

SPEC = "[1,16,0,1 Cr3,7,6 Mp4,4 S1(1x0)1,3 Lbx8]"
STEPS_AN_EPOCH = 3
STRATEGIES = ["ddp", "fsdp", pytest.param("deepspeed_stage_2", marks=pytest.mark.deepspeed)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line images and pages, and the line images without their texts."""
    directory = tmp_path_factory.mktemp("ground-truth")
    write_sample(directory / "sample", pairs=14, pages=3)
    (directory / "images").mkdir()
    for image in sorted((directory / "sample" / "lines").glob("*.png")):
        shutil.copy(image, directory / "images")
    return directory


def words(run: Path, *more: object) -> list[object]:
    globals_ = ["--workers", 0, "--seed", 5, "-d", "cpu"]
    batches = ["-B", 4, "--global-batch-size", 4, "-p", 0.8]
    learning = ["-q", "fixed", "-N", 2, "-r", 0.003, "--warmup", 8, "-nn", 10]
    return [*globals_, "pretrain", "-s", SPEC, *batches, *learning, "-o", run, *more]


def images(sample: Path) -> list[object]:
    return ["-f", "path", *sorted((sample / "images").glob("*.png"))]


@pytest.fixture(scope="module")
def done(server: Server, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on line images without texts."""
    directory = tmp_path_factory.mktemp("pretrained") / "run"
    server.run(*words(directory, *images(sample)))
    return directory


def exported(run: Path) -> Path:
    (path,) = run.glob("best_*.safetensors")
    return path


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run / "steps.jsonl")]


def test_a_run_leaves_the_file_that_kraken_writes_for_a_pretrained_network(done: Path) -> None:
    """kraken 7.1.1 loads no network without codec and output layer; the heads are of no use to anybody."""
    model = load_weights(exported(done))
    assert model.codec == NO_ALPHABET
    assert model.network.spec.endswith(" O{O_4}1c2]")
    with safe_open(exported(done), "pt") as file:
        (entry,) = json.loads(file.metadata()["kraken_meta"]).values()
        names = {name.partition(".")[2] for name in file.keys()}  # noqa: SIM118
    assert (entry["codec"], entry["model_type"]) == ({" ": [1]}, ["recognition"])
    assert names == set(model.network.state_dict())


def test_what_is_logged_and_kept(done: Path) -> None:
    """Cross-entropy, its accuracy and the collapse measures of each validation; heads only in checkpoints."""
    found = rows(done / "metrics.jsonl")
    assert [row["epoch"] for row in found] == [0, 1]
    for row in found:
        assert 0 < row["val_ce"] < 10
        assert 0 <= row["val_contrast_accuracy"] <= 1
        assert 0 < row["val_spread"] <= 1
        assert 1 <= row["val_rank"] <= 16
    names = [name for name in open_checkpoint(done / "last.ckpt").shapes if name.startswith("weights/extra.")]
    assert len(names) == 3
    best = min(found, key=lambda row: row["val_ce"])
    assert exported(done).name == f"best_{torch.tensor(-best['val_ce']).double().exp():.4f}.safetensors"


def test_all_weights_but_the_output_layers_have_learned(done: Path) -> None:
    """A layer that stayed as it was drawn would not have been pretrained."""
    early, late = (open_checkpoint(path) for path in sorted(done.glob("checkpoint_*.ckpt")))
    for name in (name for name in early.shapes if name.startswith("weights/")):
        same = torch.equal(early.tensor(name), late.tensor(name))
        assert same == ("O_4" in name), name


@pytest.mark.parametrize("source", ["weights", "checkpoint"])
def test_training_goes_on_from_it_without_resize(
    server: Server, done: Path, sample: Path, tmp_path: Path, source: str
) -> None:
    """The alphabet is that of the data, and all layers but the new output layer are those pretrained."""
    path = exported(done) if source == "weights" else done / "last.ckpt"
    data = ["-f", "path", *sorted((sample / "sample" / "lines").glob("*.png"))]
    options = ["-i", path, "-r", 1e-12, "-q", "fixed", "-N", 1, "-o", tmp_path / "run"]
    printed = server.run("--workers", 0, "-d", "cpu", "train", *options, *data)
    assert "pretrained" in printed
    fine_tuned = load_weights(exported(tmp_path / "run"))
    assert len(fine_tuned.codec) > 10
    for name, value in load_model(path).network.state_dict().items():
        if "O_4" not in name:
            torch.testing.assert_close(fine_tuned.network.state_dict()[name], value, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["pages without text", "compiled", "some texts"])
def test_lines_without_text_are_pretrained_on(
    server: Server, sample: Path, tmp_path: Path, kind: str
) -> None:
    """They are what pretraining is for, and recognition leaves them out."""
    if kind == "pages without text":
        folder = tmp_path / "pages"
        shutil.copytree(sample / "sample" / "page", folder)
        for page in folder.glob("*.xml"):
            page.write_text(re.sub("<Unicode>[^<]*<", "<Unicode><", page.read_text()))
        before = sum(page.read_text().count("<TextLine") for page in folder.glob("*.xml"))
        data: list[object] = ["-f", "page", *sorted(folder.glob("*.xml"))]
    elif kind == "compiled":
        before = 14
        compiled = tmp_path / "lines.arrow"
        server.run("--workers", 0, "compile", "--keep-empty-lines", "-o", compiled, *images(sample))
        data = ["-f", "binary", compiled]
    else:
        before = 14
        shutil.copytree(sample / "images", tmp_path / "images")
        for number, image in enumerate(sorted((tmp_path / "images").glob("*.png"))):
            if number % 2:
                image.with_suffix(".gt.txt").write_text("text" if number % 4 == 1 else "")
        data = ["-f", "path", *sorted((tmp_path / "images").glob("*.png"))]
    printed = server.run(*words(tmp_path / "run", "-N", 1, *data))
    trained = sum(row["lines"] for row in rows(tmp_path / "run" / "steps.jsonl"))
    assert f"training on {trained} lines, validating on " in printed
    assert before > trained > 0.7 * before


def test_pretraining_goes_on_from_weights_of_any_kind(
    server: Server, done: Path, sample: Path, tmp_path: Path
) -> None:
    """--load: a pretrained network as it is, a recogniser without its alphabet."""
    data = ["-f", "path", *sorted((sample / "sample" / "lines").glob("*.png"))]
    recogniser = tmp_path / "recogniser"
    server.run(
        "--workers", 0, "-d", "cpu", "train", "-s", SPEC, "-q", "fixed", "-N", 1, "-o", recogniser, *data
    )
    for number, source in enumerate((recogniser, done)):
        again = tmp_path / f"again-{number}"
        still = ["-N", 1, "--schedule", "constant", "-r", 1e-12]
        options = words(again, *still, "-i", exported(source), *images(sample))
        server.run(*(word for word in options if word not in ("-s", SPEC)))
        model, before = load_weights(exported(again)), load_weights(exported(source))
        assert model.codec == NO_ALPHABET
        for name, value in before.network.state_dict().items():
            if "O_4" not in name:
                torch.testing.assert_close(model.network.state_dict()[name], value, atol=1e-9, rtol=0)


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(
    server: Server, sample: Path, done: Path, tmp_path: Path
) -> None:
    """Masks, negatives and heads follow from seed and position, or come from the checkpoint."""
    run = tmp_path / "run"
    options = [*words(run, *images(sample)), "--resume", "auto"]
    place = "distrib.training.pretraining.module:within_lines"
    for call in (2, 6):
        assert server.start(*options, harm=[Harm(place=place, calls=(call,), do="kill")]).wait() == [-9]
    server.run(*options)
    assert unlike(done / "last.ckpt", run / "last.ckpt") == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_walk_the_curve_of_one(
    server: Server, done: Path, sample: Path, tmp_path: Path, strategy: str
) -> None:
    """A step's gradient is that of the mean over its hidden columns, whichever process holds them."""
    run = tmp_path / "run"
    server.run(*words(run, "--strategy", strategy, *images(sample)), processes=2)
    assert losses(run) == pytest.approx(losses(done), abs=2e-5)
    for ours, theirs in zip(rows(run / "metrics.jsonl"), rows(done / "metrics.jsonl"), strict=True):
        assert ours["val_ce"] == pytest.approx(theirs["val_ce"], abs=2e-5)
        assert ours["val_rank"] == pytest.approx(theirs["val_rank"], abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_negatives_of_all_processes(server: Server, sample: Path, tmp_path: Path, strategy: str) -> None:
    """A process that has no lines left in a step takes part all the same, or nobody would ever answer."""
    run = tmp_path / "run"
    batches = ["-B", 1, "--global-batch-size", 3]  # two processes share three lines
    options = words(run, "--negatives", "all", "--strategy", strategy, *batches, *images(sample))
    server.run(*options, processes=2)
    assert len(losses(run)) > STEPS_AN_EPOCH
    assert all(0 < loss < 10 for loss in losses(run))
