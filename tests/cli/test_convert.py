"""`ketos convert`: from checkpoints and weights to one verified file, or one sentence and nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from distrib.cli.main import ketos
from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel, load_weights, save_weights
from distrib.runtime.checkpoints.contents import STATE_KEY, model_state
from distrib.runtime.checkpoints.store import CheckpointFacts, CheckpointStore
from distrib.runtime.processes import Processes
from distrib.runtime.state import LocalState, Piece, state_key
from distrib.runtime.topology import Topology
from distrib.stream.batches import LineBatch
from distrib.training.decoding import network_scores
from distrib.training.proof import take_proof

SPEC = "[1,24,0,1 Cr3,3,4 Mp2,2 S1(1x0)1,3 Lbx32 O1c4]"
CHECKPOINT = "checkpoint_00-0.5000.ckpt"


def convert(*arguments: object) -> Result:
    return CliRunner().invoke(ketos, ["convert", *map(str, arguments)], prog_name="ketos")


def new_model() -> RecognitionModel:
    torch.manual_seed(3)
    return RecognitionModel(network=VGSLNetwork(SPEC).eval(), codec=Codec.from_alphabet("abc"))


def proof_of(model: RecognitionModel) -> dict[str, Any] | None:
    nothing = torch.zeros(2, dtype=torch.int64)
    batch = LineBatch(
        images=torch.randint(0, 256, (2, 1, 24, 50), dtype=torch.uint8),
        widths=torch.tensor([50, 41]),
        labels=torch.zeros(0, dtype=torch.int64),
        label_lengths=nothing,
        required_steps=nothing,
        lines=torch.arange(2),
        texts=["", ""],
        bad=[],
    )
    with torch.inference_mode():
        scores, widths = network_scores(model, batch)
    return take_proof(model, batch, scores=scores, widths=widths, precision="32-true")


def new_run(directory: Path, *, sharded: bool, scale: float = 1.0) -> Path:
    """A run directory with one checkpoint, whose weights are those of its proof times ``scale``."""
    directory.mkdir()
    model = new_model()
    proof = proof_of(model)
    tensors = {name: value * scale for name, value in model.network.state_dict().items()}
    store = CheckpointStore(
        directory, processes=Processes(Topology()), keep_best=1, keep_last=1, sharded=sharded
    )
    pieces = {
        state_key("weights", name): Piece(shape=tuple(value.shape), start=0, values=value.flatten())
        for name, value in tensors.items()
    }
    store.save(
        CHECKPOINT,
        {STATE_KEY: {"model": model_state(model), "proof": proof, "provenance": {"format": 1}}},
        LocalState(pieces=pieces, groups=[]),
        CheckpointFacts(kind="validation", step=3, epoch=0, score=0.5),
        background=False,
    )
    store.finish()
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_run(tmp_path_factory.mktemp("runs") / "run", sharded=False)


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_run(tmp_path_factory.mktemp("runs") / "run", sharded=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["run", "sharded_run"])
@pytest.mark.parametrize("name", ["", CHECKPOINT, "last.ckpt"])
def test_checkpoints_of_any_strategy_become_verified_weights(
    kind: str, name: str, here: Path, request: pytest.FixtureRequest
) -> None:
    """Weights of a sharded run could not be had without the machines that trained them."""
    source = request.getfixturevalue(kind) / name
    done = convert("-o", "m", "--author", "A. Clerk", "--license", "CC-BY-4.0", source)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(
        f"m: written from {source if name else source / CHECKPOINT}, verified on 2 l"
    )
    assert "(largest difference " in done.stdout
    written = load_weights("m")
    for key, value in new_model().network.state_dict().items():
        assert torch.equal(written.network.state_dict()[key], value)
    entry = json.loads(written.file_metadata["provenance"])
    assert (entry["author"], entry["license"]) == ("A. Clerk", "CC-BY-4.0")
    assert [path.name for path in here.iterdir()] == ["m"]


def test_weights_go_to_the_other_format_and_back(here: Path) -> None:
    """Models could not be taken to programs that read only the older format."""
    pytest.importorskip("coremltools")
    save_weights(new_model(), "a")
    done = convert("-o", "b", "--weights-format", "coreml", "a")
    assert (
        done.stdout == "b: written from a, all 12 tensors verified (no lines are kept to compare outputs)\n"
    )
    assert convert("-o", "c", "b").exit_code == 0
    assert load_weights("c").codec == new_model().codec


def test_weights_that_are_not_those_of_training_are_not_written(here: Path) -> None:
    """A file would be called proven that is not what was measured."""
    source = new_run(here / "run", sharded=False, scale=1.01) / CHECKPOINT
    done = convert("-o", "m", source)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: m was not written from {source}: line ")
    assert not Path("m").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "none: no such weights file or checkpoint"),
        (["-o", ".", "RUN"], "-o . is a folder"),
        (["-o", "no/m", "RUN"], "the folder no does not exist"),
        (["empty"], "empty: neither a checkpoint nor the directory of a run"),
        (["pipe"], "pipe: is no file"),
        (["-o", "RUN/checkpoint_00-0.5000.ckpt", "w"], "is a checkpoint, which would be lost"),
        (["-o", "w", "w"], "-o w is the file to convert"),
        (["evil.ckpt"], "it refers to code"),
        (["cut.ckpt"], "not a checkpoint of this program, or damaged"),
        (["flipped.ckpt"], "damaged"),
        (["SHARDED/damaged.ckpt"], "give another checkpoint"),
        (["SHARDED/partial.ckpt"], "part_0_of_1.ckpt: cannot be read (No such file"),
        (["--author", "a\nb", "w"], "--author: holds control characters"),
        (["--author", "a\udc80", "w"], "--author: holds control characters or bytes that are no text"),
        (["--license", "l" * 1001, "w"], "--license: 1,001 characters, at most 1,000"),
        (["--author", "a" * 1001, "RUN"], "--author: 1,001 characters"),
    ],
    ids=lambda value: value[-1][:30] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments: list[str], words: str, run: Path, sharded_run: Path, here: Path
) -> None:
    """A slip would end in a traceback, hang, cost a checkpoint or leave half a file."""
    checkpoint = (run / CHECKPOINT).read_bytes()
    save_weights(new_model(), "w")
    Path("empty").mkdir()
    os.mkfifo("pipe")
    Path("evil.ckpt").write_bytes(_malicious(checkpoint))
    Path("cut.ckpt").write_bytes(checkpoint[: len(checkpoint) // 2])
    middle = len(checkpoint) // 2
    flipped = checkpoint[:middle] + bytes([checkpoint[middle] ^ 1]) + checkpoint[middle + 1 :]
    Path("flipped.ckpt").write_bytes(flipped)
    shutil.copytree(sharded_run / CHECKPOINT, "SHARDED/damaged.ckpt")
    with Path("SHARDED/damaged.ckpt/part_0_of_1.ckpt").open("r+b") as file:
        file.seek(3000)
        file.write(b"\0\1\2\3")
    shutil.copytree(sharded_run / CHECKPOINT, "SHARDED/partial.ckpt")
    Path("SHARDED/partial.ckpt/part_0_of_1.ckpt").unlink()
    before = sorted(here.rglob("*"))
    done = convert(*(each.replace("RUN", str(run)) for each in arguments))
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("Error: ")
    assert words in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert sorted(here.rglob("*")) == before
    assert not Path("executed").exists()
    assert (run / CHECKPOINT).read_bytes() == checkpoint


def _malicious(checkpoint: bytes) -> bytes:
    """A checkpoint whose pickle would create a file."""
    import io
    import zipfile

    class Evil:
        def __reduce__(self) -> Any:
            return (open, ("executed", "w"))

    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as source, zipfile.ZipFile(target, "w") as changed:
        for name in source.namelist():
            evil = name.endswith("data.pkl")
            changed.writestr(name, pickle.dumps(Evil(), protocol=2) if evil else source.read(name))
    return target.getvalue()


@pytest.mark.parametrize("source", ["run", "weights"])
def test_a_full_disk_is_a_sentence_and_the_older_file_stays(source: str, run: Path, here: Path) -> None:
    """Weights that were there would be lost to a disk that has no room for new ones."""
    save_weights(new_model(), "weights")
    Path("m").write_bytes(b"older")
    arguments = ["convert", "-o", "m", str(run) if source == "run" else "weights"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 8; exec "$0" -m distrib "$@"', sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: m: cannot be written (File too large)")
    assert Path("m").read_bytes() == b"older"
    assert sorted(path.name for path in here.iterdir()) == ["m", "weights"]
