"""ZeRO against the same training in one process that holds everything: losses, weights, checkpoints."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from distrib.errors import InputError
from distrib.runtime.strategies.deepspeed import check_deepspeed

from .zero_job import FROM_THE_START, PLAIN, RESUMED, Merged, Run, resumed

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.xdist_group("deepspeed")]

JOB = Path(__file__).with_name("zero_job.py")
RUNS = {run.name: run for run in [*FROM_THE_START, *resumed(1), *resumed(3), *resumed(2)]}
SAME_TRAINING = [
    *((f"{name}_{stage}", name) for name in ("adamw", "sgd") for stage in (1, 2, 3)),
    *((f"optimizer_{stage}", "short") for stage in (1, 2, 3)),
    ("all_3", "short"),
    ("whole_3", "rmsprop"),
]


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Where the runs left what they have to tell, and what they printed."""

    folder: Path
    printed: str

    def __getitem__(self, name: str) -> Merged:
        return Merged(self.folder, name)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    if importlib.util.find_spec("deepspeed") is None:
        if "deepspeed" in os.environ.get("KETOS_TESTS_REQUIRE", "").split():
            pytest.fail("DeepSpeed is not installed, and tests marked deepspeed must run here")
        pytest.skip("DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    repository = str(JOB.parents[2])
    done = subprocess.run(
        [sys.executable, str(JOB), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": repository},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Jobs(folder=folder, printed=done.stdout + done.stderr)


def relative(values: list[float], wanted: list[float], run: Run) -> float:
    """The largest difference in steps that were taken, as a share of what was wanted."""
    pairs = [
        (value, want)
        for step, (value, want) in enumerate(zip(values, wanted, strict=True), start=run.first)
        if step not in run.bad
    ]
    return max(abs(value - want) / abs(want) for value, want in pairs)


def assert_same_state(found: Merged, wanted: Merged) -> None:
    """All tensors agree to 1e-5; the optimizer's to a share of the largest element."""
    assert found.shapes == wanted.shapes
    for key, shape in wanted.shapes.items():
        value, want = found.read(key), wanted.read(key)
        assert value.dtype == want.dtype
        scale = 1.0 if key.startswith("weights/") else max(1.0, float(want.abs().max()))
        assert float((value - want).abs().max()) <= 1e-5 * scale, (key, shape)


@pytest.mark.parametrize(("name", "plain"), SAME_TRAINING)
def test_losses_and_weights_are_those_of_one_process(jobs: Jobs, name: str, plain: str) -> None:
    """Gradients are averaged once over the processes, whatever the number of micro-batches."""
    found, wanted, run = jobs[name], jobs[plain], RUNS[name]
    for outcome in found.outcomes:
        assert relative(outcome.losses, wanted.outcomes[0].losses, run) < 1e-4
    assert_same_state(found, wanted)
    assert found.groups == wanted.groups


@pytest.mark.parametrize("name", ["adamw_1", "adamw_2", "adamw_3", "optimizer_2", "all_3"])
def test_gradients_are_clipped_to_the_norm_of_all(jobs: Jobs, name: str) -> None:
    """A norm of one process's part, or of the sum over processes, would not be torch's."""
    plain = "adamw" if name.startswith("adamw") else "short"
    found, wanted, run = jobs[name].outcomes[0], jobs[plain].outcomes[0], RUNS[name]
    assert min(norm for norm, applied in zip(found.norms, found.applied, strict=True) if applied) > run.clip
    assert relative(found.norms[:3], wanted.norms[:3], run) < 1e-5


@pytest.mark.parametrize("name", [run.name for run in FROM_THE_START if run.bad])
def test_a_step_without_finite_loss_at_one_process_changes_nothing_at_any(jobs: Jobs, name: str) -> None:
    """Weights, moments or step counts of one process would run away from the others'."""
    run = RUNS[name]
    wanted = [step not in run.bad for step in range(run.first, run.last)]
    for outcome in jobs[name].outcomes:
        assert outcome.applied == wanted
        assert outcome.counted == sum(wanted)
    steps = [jobs[name].read(key) for key in jobs[name].shapes if key.startswith("step/")]
    assert all(float(step) == sum(wanted) for step in steps)


@pytest.mark.parametrize("name", list(RUNS))
def test_together_the_processes_hold_each_element_once(jobs: Jobs, name: str) -> None:
    """A checkpoint would lack some, or be larger than it has to be."""
    found = jobs[name]
    for key, holders in found.holders.items():
        counted = key.startswith("step/")
        assert (holders >= 1).all() if counted else (holders == 1).all(), key
        assert not torch.isnan(found.read(key)).any()


@pytest.mark.parametrize("name", ["adamw_1", "adamw_2", "adamw_3", "three_1", "three_2", "three_3"])
def test_each_process_holds_its_share(jobs: Jobs, name: str) -> None:
    outcomes = jobs[name].outcomes
    held = [sum(len(values) for _, _, values in outcome.pieces.values()) for outcome in outcomes]
    everything = sum(torch.Size(shape).numel() for shape in jobs[name].shapes.values())
    assert max(held) < 1.02 * everything / len(outcomes)
    assert outcomes[0].kinds_before == ["weights"]


def test_stage_3_keeps_no_parameter_whole_between_steps(jobs: Jobs) -> None:
    """But small ones, where they are told to."""
    for name in ("adamw_3", "all_3", "bf16_3"):
        assert all(outcome.live == 0 for outcome in jobs[name].outcomes)
    whole = sum(
        torch.Size(shape).numel() for key, shape in jobs["whole_3"].shapes.items() if "weights/" in key
    )
    assert all(outcome.live == whole for outcome in jobs["whole_3"].outcomes)


@pytest.mark.parametrize(("name", "start"), [pair for pairs in RESUMED.values() for pair in pairs])
def test_every_process_loads_exactly_what_another_stage_saved(jobs: Jobs, name: str, start: str) -> None:
    saved = jobs[start]
    for outcome in jobs[name].outcomes:
        for parameter, value in outcome.loaded.items():
            assert torch.equal(value.flatten(), saved.read(f"weights/{parameter}")), parameter


@pytest.mark.parametrize("name", [name for name, _ in RESUMED[2]] + ["went_on"])
def test_training_goes_on_at_other_sizes_and_under_other_stages(jobs: Jobs, name: str) -> None:
    """From two processes to one, three and two, each time under another stage, is as if never stopped."""
    found, wanted = jobs[name], jobs["ended"]
    run = RUNS.get(name) or next(run for run in PLAIN if run.name == name)
    for outcome in found.outcomes:
        assert relative(outcome.losses, wanted.outcomes[0].losses[run.first :], run) < 1e-4
    assert_same_state(found, wanted)
    assert found.groups == wanted.groups


@pytest.mark.parametrize("name", ["froze_2", "froze_3"])
def test_what_is_not_trained_is_saved_and_loaded_too(jobs: Jobs, name: str) -> None:
    assert_same_state(jobs[name], jobs["frozen"])


@pytest.mark.parametrize("stage", [1, 3])
def test_bfloat16_is_autocast_over_float32_weights(jobs: Jobs, stage: int) -> None:
    """DeepSpeed's own mode would keep bfloat16 weights, and drift away in other places than DDP."""
    found, wanted = jobs[f"bf16_{stage}"], jobs["bf16"]
    run = RUNS[f"bf16_{stage}"]
    assert relative(found.outcomes[0].losses, wanted.outcomes[0].losses, run) < 0.01
    assert found.outcomes[0].losses != jobs[f"adamw_{stage}"].outcomes[0].losses[: run.last]
    assert {found.read(key).dtype for key in found.shapes} == {torch.float32}


def test_deepspeed_says_nothing(jobs: Jobs) -> None:
    """Its notices would drown ours, and a line about a compilation would mean minutes of it."""
    assert jobs.printed == ""


def test_what_cannot_be_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_deepspeed("deepspeed_stage_3", offload="all", optimizer="AdamW")
    with pytest.raises(InputError, match="--offload optimizer with deepspeed_stage_2"):
        check_deepspeed("deepspeed_stage_2", offload="all", optimizer="AdamW")
    with pytest.raises(InputError, match="--strategy ddp"):
        check_deepspeed("deepspeed_stage_1", offload="none", optimizer="Lamb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ketos-distrib\[deepspeed\]'"):
        check_deepspeed("deepspeed_stage_2", offload="none", optimizer="AdamW")
