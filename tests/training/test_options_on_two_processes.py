"""All options of a run's loss and weights together: two processes, under every kind of strategy, do what one
does, also where they are killed while the backbone is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import best

from .forked import Harm, Server
from .launching import rows

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("options on two processes")]

SPEC = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16]"
"""Without dropout, which differs with the number of processes."""

LINES, STEPS, FROZEN = 4, 20, 13
"""Lines of a step, steps of the run, and those in which the backbone does not learn."""

FROZEN_LINES = 38 + 3 * LINES
"""Lines of these steps: an epoch's, whose last step has but two, and three more steps."""

OPTIONS: tuple[object, ...] = (
    *("--ema", 0.8, "--shortcut", 0.3, "--span-masks", 0.2, "--label-smoothing", 0.02),
    *("--freeze-backbone", FROZEN_LINES, "--augment", "--weight-decay", 0.01),
)

LOSS = "distrib.training.recognition:RecognitionModule.loss"
"""Called once a micro-batch by each process, of which it has two a step."""

STRATEGIES = [
    pytest.param("ddp", 1),
    pytest.param("fsdp", 2),
    pytest.param("deepspeed_stage_2", 1, marks=pytest.mark.deepspeed),
    pytest.param("deepspeed_stage_3", 2, marks=pytest.mark.deepspeed),
]
"""And the processes that go on."""


def _words(data: Path, run: Path, strategy: str, *, lines: int) -> list[object]:
    batches = ["-B", lines, "--global-batch-size", LINES, "-q", "fixed", "-N", 2, "-p", 0.75]
    saving = ["--save-steps", 1, "--keep-last", STEPS]
    words = ["train", "-f", "binary", "-s", SPEC, *batches, *saving, *OPTIONS, "--strategy", strategy]
    return ["-d", "cpu", "--workers", 0, "--seed", 5, *words, "-o", run, data]


def _state(checkpoint: Path) -> dict[str, Tensor]:
    reader = open_checkpoint(checkpoint)
    return {key: reader.tensor(key) for key in reader.shapes}


def _losses(run: Path) -> dict[int, float]:
    return {int(row["step"]): row["loss"] for row in rows(run / "steps.jsonl")}


def _moved_by_step(run: Path) -> dict[int, bool]:
    """Whether any weight of the backbone differs from the first step's, by the steps that were saved."""
    found: dict[int, dict[str, Tensor]] = {}
    for path in sorted(run.glob("*.ckpt"), key=lambda each: each.stat().st_mtime_ns):
        reader = open_checkpoint(path)
        assert reader.facts is not None
        found[reader.facts.step] = {
            key: reader.tensor(key)
            for key in reader.shapes
            if key.startswith("weights/nn.") and ".O_" not in key
        }
    first = found[min(found)]
    return {
        step: any(not torch.equal(first[key], value) for key, value in weights.items())
        for step, weights in found.items()
    }


@pytest.fixture(scope="module")
def one(server: Server, lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    server.run(*_words(lines_arrow, run, "ddp", lines=LINES))
    return run


def test_the_backbone_is_frozen_to_the_step(one: Path) -> None:
    moved = _moved_by_step(one)
    assert min(moved) < FROZEN < max(moved)
    assert moved == {step: step > FROZEN for step in moved}


def test_the_average_is_exported_and_the_shortcut_is_not(one: Path) -> None:
    (file,) = one.glob("best_*.safetensors")
    exported = {name.partition(".")[2]: tensor for name, tensor in load_file(file).items()}
    state = _state(best(one)[0].path)
    assert exported.keys() == {key.removeprefix("weights/") for key in state if key.startswith("weights/nn.")}
    for name, tensor in exported.items():
        assert torch.equal(tensor, state.get(f"ema/{name}", state[f"weights/{name}"]))
    assert not torch.equal(exported["nn.O_4.lin.weight"], state["weights/nn.O_4.lin.weight"])
    assert "weights/extra.shortcut.co.weight" in state


@pytest.mark.parametrize(("strategy", "processes"), STRATEGIES)
def test_two_processes_do_what_one_does_also_when_they_are_killed(
    server: Server, lines_arrow: Path, one: Path, tmp_path: Path, strategy: str, processes: int
) -> None:
    """In the frozen time: an average or a freeze that is lost with them would show."""
    run = tmp_path / "run"
    killed = [Harm(place=LOSS, calls=(11,), do="kill", rank=None)]
    job = server.start(*_words(lines_arrow, run, strategy, lines=1), processes=2, harm=killed)
    assert set(job.wait()) == {-9}, job.output
    server.run("-d", "cpu", "--workers", 0, "train", "--resume", run, processes=processes)
    losses, expected = _losses(run), _losses(one)
    assert losses.keys() == set(range(STEPS))
    assert [losses[step] for step in range(STEPS)] == pytest.approx(
        [expected[step] for step in range(STEPS)], rel=1e-4
    )
    moved = _moved_by_step(run)
    assert moved == {step: step > FROZEN for step in moved}
    state, other = _state(run / "last.ckpt"), _state(one / "last.ckpt")
    assert state.keys() == other.keys()
    for key, tensor in state.items():
        assert float((tensor - other[key]).abs().max()) < 1e-5, key
    assert [row["val_accuracy"] for row in rows(run / "metrics.jsonl")] == [
        row["val_accuracy"] for row in rows(one / "metrics.jsonl")
    ]
