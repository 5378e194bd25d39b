"""Every strategy walks the loss curve of DDP on real lines, and goes on from the state of any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distrib.runtime.checkpoints.reader import open_checkpoint

from .conftest import ketos
from .launching import rows, run

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.xdist_group("strategies")]

LINES = 44
"""Of these 40 are trained on, 4 a step."""
EPOCHS, STEPS = 5, 50
SPEC = "[1,24,0,1 Cr3,3,8 Mp2,2 Cr3,3,12 Mp2,2 S1(1x0)1,3 Lbx24 Lfx15]"
SPEC_WITH_DROPOUT = SPEC.replace(" Lfx15", " Do0.3 Lfx15")
SHARDED = [
    "fsdp",
    *(
        pytest.param(f"deepspeed_stage_{stage}", marks=pytest.mark.deepspeed, id=f"zero-{stage}")
        for stage in (1, 2, 3)
    ),
]


@pytest.fixture(scope="module")
def lines(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real lines, compiled."""
    output = tmp_path_factory.mktemp("lines") / "lines.arrow"
    images = sorted((real_data / "fraktur-lines").glob("*.png"))[:LINES]
    ketos("--workers", 0, "compile", "-f", "path", "--height", 24, "-o", output, *images)
    return output


@pytest.fixture(scope="module")
def ddp(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes under DDP with dropout, one micro-batch a step."""
    return _train("ddp", lines, tmp_path_factory.mktemp("ddp") / "run", "-B", 2, spec=SPEC_WITH_DROPOUT)


@pytest.fixture(scope="module")
def uninterrupted(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout, whose masks differ with the number of processes, two micro-batches a step."""
    return _train("ddp", lines, tmp_path_factory.mktemp("uninterrupted") / "run", "-B", 1, spec=SPEC)


def _train(strategy: str, lines: Path, directory: Path, *more: object, spec: str) -> Path:
    options = [*_options(strategy, *more, spec=spec), "-N", EPOCHS]
    run(2, *_GLOBALS, "train", *options, "-o", directory, lines)
    return directory


_GLOBALS = ("-d", "cpu", "--workers", 0, "--seed", 5)


def _options(strategy: str, *more: object, spec: str) -> list[object]:
    batches = ["--global-batch-size", 4, *more]
    return ["-f", "binary", "--strategy", strategy, "-s", spec, *batches, "-q", "fixed", "-r", 0.003]


def _losses(directory: Path, steps: int = STEPS) -> list[float]:
    """The loss of each step, every one of which was done once."""
    done = rows(directory / "steps.jsonl")
    assert [row["step"] for row in done] == list(range(steps))
    return [row["loss"] for row in done]


def _scores(directory: Path) -> list[float]:
    return [row["val_accuracy"] for row in rows(directory / "metrics.jsonl")]


def _exported(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of the exported file, whose names begin with an identifier of their own."""
    (file,) = directory.glob("best_*.safetensors")
    return {name.partition(".")[2]: tensor for name, tensor in load_file(file).items()}


def _last(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: weights, and what the optimizer keeps of them."""
    reader = open_checkpoint(directory / "last.ckpt")
    return {key: reader.tensor(key) for key in reader.shapes}


def _check_same_end(directory: Path, expected: Path) -> None:
    """The same scores, exported weights and state, whatever strategy wrote them."""
    assert _scores(directory) == _scores(expected)
    exported, others = _exported(directory), _exported(expected)
    assert exported.keys() == others.keys()
    for name, tensor in exported.items():
        assert float((tensor - others[name]).abs().max()) < 1e-5, name
    state, other_state = _last(directory), _last(expected)
    assert state.keys() == other_state.keys()
    for key, tensor in state.items():
        assert tensor.shape == other_state[key].shape, key
        assert float((tensor - other_state[key]).abs().max()) < 1e-5, key


def _check_ledger(directory: Path, epochs: int) -> None:
    report = json.loads(run(1, "ledger", "--json", directory))
    assert report["exact"]
    assert [epoch["complete"] for epoch in report["epochs"]] == [True] * epochs


def test_the_lines_can_be_learned(ddp: Path, uninterrupted: Path) -> None:
    """Equal curves prove little where nothing moves."""
    for directory in (ddp, uninterrupted):
        losses = _losses(directory)
        assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize("strategy", SHARDED)
def test_losses_and_weights_are_those_of_ddp(strategy: str, lines: Path, ddp: Path, tmp_path: Path) -> None:
    """Gradients summed for averaged, clipped by parts or exchanged too late would show within 50 steps."""
    directory = _train(strategy, lines, tmp_path / "run", "-B", 2, spec=SPEC_WITH_DROPOUT)
    assert _losses(directory) == pytest.approx(_losses(ddp), rel=1e-4)
    _check_same_end(directory, ddp)
    _check_ledger(directory, EPOCHS)


@pytest.mark.parametrize("strategy", SHARDED)
def test_a_run_goes_on_with_any_number_of_processes_and_under_ddp(
    strategy: str, lines: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """By 1, 2, 3 and 1 processes the run is that of two under DDP; in between, one goes on under DDP."""
    directory, ported = tmp_path / "run", tmp_path / "ported"
    begin = [*_options(strategy, "-B", 1, spec=SPEC), "-N", 1]
    run(1, *_GLOBALS, "train", *begin, "-o", directory, lines)
    run(2, *_GLOBALS, "train", "--resume", directory, "-N", 2)
    shutil.copytree(directory, ported, symlinks=True)
    run(3, *_GLOBALS, "train", "--resume", directory, "-N", 3)
    run(1, *_GLOBALS, "train", "--resume", directory, "-N", EPOCHS)
    run(1, *_GLOBALS, "train", "--resume", ported, "--strategy", "ddp", "-N", EPOCHS)
    assert (directory / "last.ckpt").is_dir()
    assert (ported / "last.ckpt").is_file()
    for each in (directory, ported):
        assert _losses(each) == pytest.approx(_losses(uninterrupted), rel=1e-4)
        _check_same_end(each, uninterrupted)
        _check_ledger(each, EPOCHS)
