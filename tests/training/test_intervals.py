"""Checkpoints by epochs, steps and minutes; a run killed between them any number of times is the same run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from distrib.runtime.checkpoints.contents import STATE_KEY
from distrib.runtime.checkpoints.names import is_run_name
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import best
from distrib.stream.ledger_report import verify_ledger

from .comparing import STEPS_AN_EPOCH, at, checkpoints, differences, training
from .forked import Server
from .launching import rows

_ACCUMULATED = ("-B", 2, "--accumulate-grad-batches", 2)
_BY_PIXELS = ("-B", 0, "--batch-pixels", 5000)


@pytest.mark.parametrize(
    ("processes", "epochs", "options"),
    [
        pytest.param(1, 2, ["-F", 0.3], id="inside epochs", marks=pytest.mark.slow),
        pytest.param(1, 3, ["-F", 2, "--save-steps", 4], id="every other epoch, and by steps"),
        pytest.param(1, 2, [*_BY_PIXELS, "-F", 0.3, "--save-steps", 2], id="by pixels, in part of an epoch"),
        pytest.param(1, 2, ["-F", 1], id="epochs", marks=pytest.mark.slow),
        pytest.param(1, 2, [*_ACCUMULATED, "--save-steps", 3], id="accumulated", marks=pytest.mark.slow),
        pytest.param(1, 3, [*_BY_PIXELS, "-F", 1], id="by pixels", marks=pytest.mark.slow),
        pytest.param(1, 3, [*_BY_PIXELS, "-F", 2, "--save-steps", 5], id="2 px", marks=pytest.mark.slow),
        pytest.param(1, 2, ["--save-minutes", 0.001], id="minutes", marks=pytest.mark.slow),
        pytest.param(2, 2, ["-F", 0.3, "--save-steps", 4], id="two processes", marks=pytest.mark.slow),
        pytest.param(2, 2, [*_BY_PIXELS, "--save-steps", 2], id="two by pixels", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_again_and_again_is_the_run_that_was_not(
    server: Server, lines_arrow: Path, tmp_path: Path, processes: int, epochs: int, options: list[object]
) -> None:
    """Weights, optimizer, counters, ledger, steps and scores; also where epochs differ in length."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = training(lines_arrow, whole, *options, processes=processes, epochs=epochs)
    server.run(*words, processes=processes)
    words = training(lines_arrow, broken, *options, processes=processes, epochs=epochs)
    draw = random.Random(str(options))
    for _ in range(50):
        going_on = ["train", "--resume", broken] if checkpoints(broken) else words
        harm = at(draw.randint(4, 24), "kill", rank=draw.randrange(processes))
        if set(server.start(*going_on, processes=processes, harm=harm).wait()) == {0}:
            break
    assert differences(whole, broken) == []
    assert not list(broken.glob(".*.part"))


@pytest.mark.parametrize(
    ("options", "validation"),
    [
        pytest.param(["-F", 0.6], 2, id="a part of an epoch"),  # after steps 5 and 10
        pytest.param(["-F", 0.3], 10, id="the rest of the last epoch"),  # after 3, 6 and 9, and after 30
        pytest.param([*_BY_PIXELS, "-F", 1], 1, id="epochs of other lengths", marks=pytest.mark.slow),
        pytest.param(["-F", 2], 2, id="the last epoch, out of turn", marks=pytest.mark.slow),
        pytest.param([*_BY_PIXELS, "-F", 2], 1, id="by pixels", marks=pytest.mark.slow),
    ],
)
def test_a_validation_broken_off_at_the_end_of_an_epoch_is_made_before_the_next(
    server: Server, lines_arrow: Path, tmp_path: Path, options: list[object], validation: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    server.run(*training(lines_arrow, whole, *options, epochs=3))
    begun = "distrib.training.learner:Learner.on_validation_start"
    harm = at(validation, "raise", place=begun, after=True)
    assert server.start(*training(lines_arrow, broken, *options, epochs=3), harm=harm).wait() == [1]
    assert "checkpoint_abort.ckpt" in checkpoints(broken)
    # And broken off a second time, before any step.
    again = at(1, "term", place="distrib.training.recognition:texts_of")
    assert server.start("train", "--resume", broken, harm=again).wait() == [143]
    server.run("train", "--resume", broken)
    assert differences(whole, broken) == []


@pytest.mark.parametrize(
    "options", [["-F", 0.3], pytest.param([*_BY_PIXELS, "-F", 0.4], marks=pytest.mark.slow)]
)
def test_a_run_ends_in_a_validation_though_an_epochs_steps_leave_a_rest(
    server: Server, lines_arrow: Path, tmp_path: Path, options: list[object]
) -> None:
    """Broken: what the last steps have learned is neither measured nor exported."""
    server.run(*training(lines_arrow, tmp_path / "run", *options, epochs=2))
    done = rows(tmp_path / "run" / "steps.jsonl")[-1]["step"] + 1
    validated = [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert validated[-1] == done
    if done == 2 * STEPS_AN_EPOCH:
        assert validated == [3, 6, 9, 13, 16, 19, 20]


@pytest.mark.parametrize("freq", [0.3, 2])
def test_the_last_steps_of_an_epoch_are_kept_though_no_validation_follows(
    server: Server, lines_arrow: Path, tmp_path: Path, freq: float
) -> None:
    directory = tmp_path / "run"
    server.start(*training(lines_arrow, directory, "-F", freq), harm=at(STEPS_AN_EPOCH + 1, "raise")).wait()
    reader = open_checkpoint(directory / f"step_{STEPS_AN_EPOCH:08}.ckpt")
    position = reader.common[STATE_KEY]["stream"]
    assert (position["epoch"], position["step"], position["number"]) == (1, 0, STEPS_AN_EPOCH)


def test_interval_checkpoints_are_written_at_their_steps_and_not_beside_a_validation(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    options = ["-F", 0.6, "--save-steps", 2, "--keep-last", 99]  # validations after steps 5 and 10
    server.run(*training(lines_arrow, tmp_path / "run", *options, epochs=2))
    steps = [row["step"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    intervals = [name for name in checkpoints(tmp_path / "run") if name.startswith("step_")]
    expected = {2, 4, 6, 8, 10, 12, 14, 16, 18, 20} - {int(step) for step in steps}
    assert intervals == [f"step_{step:08}.ckpt" for step in sorted(expected)]


def test_minutes_between_checkpoints_are_kept_by_all_processes(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    """Each has a clock of its own; a checkpoint that only some think due would never come about."""
    words = training(
        lines_arrow, tmp_path / "run", "--save-minutes", 1e-6, "--keep-last", 99, processes=2, epochs=1
    )
    server.run(*words, processes=2)
    assert len([name for name in checkpoints(tmp_path / "run") if name.startswith("step_")]) > 3


@pytest.mark.parametrize(("keep_best", "keep_last"), [(2, 3), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_the_best_and_the_last_are_kept(
    server: Server, lines_arrow: Path, tmp_path: Path, keep_best: int, keep_last: int
) -> None:
    directory, limits = tmp_path / "run", ["--keep-best", keep_best, "--keep-last", keep_last]
    server.run(*training(lines_arrow, directory, "-F", 0.3, "--save-steps", 1, *limits, epochs=3))
    written = [str(row["name"]) for row in rows(directory / "checkpoints.jsonl") if "name" in row]
    scores = {row["name"]: row["score"] for row in rows(directory / "checkpoints.jsonl") if "name" in row}
    kept = {name for name in checkpoints(directory) if is_run_name(name)}
    assert set(written[-keep_last:]) <= kept
    validated = [score for score in scores.values() if score is not None]
    assert [each.score for each in best(directory)][:keep_best] == sorted(validated, reverse=True)[:keep_best]
    assert len(kept) <= keep_best + keep_last
    assert (directory / "last.ckpt").samefile(directory / written[-1])
    assert verify_ledger(directory / "ledger").exact
