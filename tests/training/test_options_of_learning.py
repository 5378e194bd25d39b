"""Every option of learning reaches the run it is given for: it ends otherwise than one without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint
from distrib.runtime.state import WEIGHTS

from .comparing import LOSS, at, differences, training
from .forked import Server
from .launching import rows

pytestmark = pytest.mark.xdist_group("options of learning")

Run = Callable[..., Path]

WITHOUT_DROPOUT = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16]"
"""Dropout differs with the number of processes."""


@pytest.fixture(scope="module")
def run(server: Server, lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trains for an epoch with some options; once for the same ones."""
    known: dict[tuple[object, ...], Path] = {}

    def trained(*options: object) -> Path:
        if options not in known:
            directory = tmp_path_factory.mktemp("learning") / "run"
            server.run(*training(lines_arrow, directory, *options, epochs=1))
            known[options] = directory
        return known[options]

    return trained


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run / "steps.jsonl")]


def _rates(run: Path) -> list[float]:
    return [row["lrate"] for row in rows(run / "steps.jsonl")]


def _last(run: Path) -> CheckpointReader:
    return open_checkpoint(run / "last.ckpt")


def _weights(run: Path) -> torch.Tensor:
    reader = _last(run)
    keys = [key for key in sorted(reader.shapes) if key.startswith(f"{WEIGHTS}/nn.")]
    return torch.cat([reader.tensor(key).flatten() for key in keys])


@pytest.mark.parametrize(
    "options",
    [("--augment",), ("--span-masks", 0.3), ("--label-smoothing", 0.1), ("--shortcut", 0.3)],
    ids=lambda options: options[0],
)
def test_what_changes_the_loss_changes_it_from_the_first_step(run: Run, options: tuple[object, ...]) -> None:
    assert _losses(run())[0] != _losses(run(*options))[0]


def test_the_strength_of_augmentation_counts(run: Run) -> None:
    weak = run("--augment", "--augment-strength", 0.3)
    assert _losses(run("--augment")) != _losses(weak)
    assert _losses(run("--augment", "--augment-strength", 0)) == _losses(run())


def test_validation_sees_lines_as_they_are(run: Run) -> None:
    """The network hardly moves, so that all scores are those of its first weights."""
    still = ("-r", 1e-12, "--optimizer", "SGD", "-m", 0)
    plain, augmented = run(*still), run(*still, "--augment", "--augment-strength", 3)
    scores = [row["val_accuracy"] for row in rows(plain / "metrics.jsonl")]
    assert scores == [row["val_accuracy"] for row in rows(augmented / "metrics.jsonl")]
    assert torch.allclose(_weights(plain), _weights(augmented), atol=1e-7)
    proofs = [_last(each).common["ketos"]["proof"]["scores"] for each in (plain, augmented)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*proofs, strict=True))


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSprop", "Lamb"])
def test_each_optimizer_goes_its_own_way(run: Run, optimizer: str) -> None:
    """Adam is AdamW without decay, so both are given some."""
    decay = ("-w", 0.1)
    assert not torch.equal(_weights(run(*decay)), _weights(run(*decay, "--optimizer", optimizer)))


@pytest.mark.parametrize(
    "options", [("-w", 0.1), ("-m", 0.5), ("--gradient-clip-val", 1e-9)], ids=lambda options: options[0]
)
def test_settings_of_the_optimizer_change_the_weights(run: Run, options: tuple[object, ...]) -> None:
    assert not torch.equal(_weights(run()), _weights(run(*options)))


def test_scaling_multiplies_the_rate(run: Run) -> None:
    """Steps of four lines, of which a process takes two at once."""
    halves = ("-B", 2, "--global-batch-size", 4)
    (plain,) = set(_rates(run(*halves)))
    assert set(_rates(run(*halves, "--lrate-scaling", "linear"))) == {2 * plain}
    assert _rates(run(*halves, "--lrate-scaling", "sqrt")) == pytest.approx([2**0.5 * plain] * 10)


def test_a_rate_that_was_scaled_stays_when_a_run_goes_on_with_smaller_batches(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    """As it does where memory did not suffice: the steps have the lines they had."""
    directory = tmp_path / "run"
    words = ("-B", 4, "--global-batch-size", 8, "--lrate-scaling", "linear")
    server.run(*training(lines_arrow, directory, *words, epochs=1))
    server.run("train", "--resume", directory, "-B", 1, "-N", 2)
    assert set(_rates(directory)) == {2e-3}


def test_one_cycle_moves_the_momentum_of_the_optimizer(run: Run) -> None:
    (group,) = _last(run("--schedule", "1cycle")).groups
    assert group["betas"][0] != 0.9


_BY_ELEMENT = ("Adam", "AdamW", "SGD", "RMSprop")
_SCHEDULES = (
    "step",
    "exponential",
    "cosine",
    "cosine_warm_restarts",
    "1cycle",
    "reduceonplateau",
    "constant",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "optimizers"),
    [
        ("ddp", (*_BY_ELEMENT, "Lamb")),
        pytest.param("deepspeed_stage_2", _BY_ELEMENT, marks=pytest.mark.deepspeed),
    ],
)
def test_two_processes_learn_as_one_with_each_optimizer_and_schedule(
    server: Server, lines_arrow: Path, tmp_path: Path, strategy: str, optimizers: tuple[str, ...]
) -> None:
    """Rates, momentum, decay, clipping and scaling belong to the step, which is the same."""
    for number, schedule in enumerate(_SCHEDULES):
        words: list[object] = ["--optimizer", optimizers[number % len(optimizers)], "--schedule", schedule]
        words += ["-w", 0.01, "-m", 0.8, "--gradient-clip-val", 0.5, "--warmup", 5, "--freq", 0.5]
        words += ["--lrate-scaling", "sqrt", "-ss", 1, "--sched-patience", 0, "--cos-max", 1, "-r", 1e-3]
        runs = []
        for processes in (1, 2):
            runs.append(tmp_path / f"{schedule}-{processes}")
            steps = ["-B", 2, "--global-batch-size", 4, "-s", WITHOUT_DROPOUT, "--strategy", strategy]
            # The lines that the rate is meant for are those of -B, which is the same.
            server.run(*training(lines_arrow, runs[-1], *words, *steps, epochs=1), processes=processes)
        assert _rates(runs[0]) == _rates(runs[1])
        assert _losses(runs[0]) == pytest.approx(_losses(runs[1]), rel=1e-4), schedule
        assert torch.allclose(_weights(runs[0]), _weights(runs[1]), atol=1e-4), schedule


@pytest.mark.parametrize("processes", [1, 2])
def test_annealing_and_early_stopping_end_together(
    server: Server, lines_arrow: Path, tmp_path: Path, processes: int
) -> None:
    """No improvement counts: one validation to set the mark, one to wait, and one to cool with annealing."""
    for quit_mode, validations in (("early", 2), ("aneal", 3)):
        run = tmp_path / quit_mode
        words = ["-q", quit_mode, "-N", -1, "--lag", 1, "--min-delta", 2]
        server.run(*training(lines_arrow, run, *words, processes=processes), processes=processes)
        assert len(rows(run / "metrics.jsonl")) == validations


def test_everything_together_goes_on_bit_by_bit(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    """Averages, frozen layers, the shortcut, masks, augmentation, annealing, a plateau: across two kills."""
    options: list[object] = ["--ema", 0.9, "--shortcut", 0.2, "--span-masks", 0.2, "--label-smoothing", 0.05]
    options += ["--augment", "--freeze-backbone", 60, "-q", "aneal", "--lag", 1, "--min-delta", 2, "-N", -1]
    options += ["--schedule", "reduceonplateau", "--sched-patience", 0, "--warmup", 7, "--save-steps", 3]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    server.run(*training(lines_arrow, whole, *options))
    words = [*training(lines_arrow, broken, *options), "--resume", "auto"]
    for call in (14, 30):  # both losses of a step count: while layers are frozen, and after
        server.start(*words, harm=at(call, "kill", place=LOSS)).wait()
    server.run(*words)
    assert differences(whole, broken) == []
    assert len(set(_rates(whole))) > 10
