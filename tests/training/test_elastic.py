"""One run, whatever the number of processes and workers, and however often it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from .conftest import TINY_SPEC
from .jobs import started
from .launching import rows, run, run_until, unlike

SPEC_WITHOUT_DROPOUT = TINY_SPEC.replace(" Do0.3", "")


def _options(lines: Path, directory: Path, *more: object) -> list[object]:
    batches = ["-B", 2, "--global-batch-size", 4]
    return ["-f", "binary", *batches, "-q", "fixed", "-N", 3, "-F", 0.2, *more, "-o", directory, lines]


def _losses(directory: Path) -> dict[int, float]:
    """The loss of each step; of a step that was done again, that of the last time."""
    return {int(row["step"]): row["loss"] for row in rows(directory / "steps.jsonl")}


def _steps_in_ledger(directory: Path) -> int:
    """About how many records rank zero has written in all its segments."""
    return sum(path.stat().st_size for path in directory.glob("ledger/*-rank-00000.bin")) // 40


def _check_ledger(directory: Path, epochs: int) -> None:
    report = json.loads(run(1, "ledger", "--json", directory))
    assert report["exact"]
    assert len(report["epochs"]) == epochs
    for epoch in report["epochs"]:
        assert epoch["exact"], epoch
        assert epoch["complete"], epoch


@pytest.mark.slow
def test_two_processes_walk_the_loss_curve_of_one(lines_arrow: Path, tmp_path: Path) -> None:
    for world_size in (1, 2):
        options = _options(lines_arrow, tmp_path / str(world_size), "-s", SPEC_WITHOUT_DROPOUT)
        printed = run(world_size, "--workers", world_size - 1, "--seed", 5, "train", *options)
        # Rank zero alone speaks.
        assert printed.count("best model: accuracy") == 1
        _check_ledger(tmp_path / str(world_size), epochs=3)
    one, two = _losses(tmp_path / "1"), _losses(tmp_path / "2")
    assert one.keys() == two.keys()
    assert one == pytest.approx(two, rel=1e-4)
    scores = [[row["val_accuracy"] for row in rows(tmp_path / name / "metrics.jsonl")] for name in ("1", "2")]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_a_run_killed_and_resumed_at_other_sizes_is_the_run_that_was_never_interrupted(
    lines_arrow: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(1, "--workers", 0, "--seed", 5, "train", *_options(lines_arrow, whole, "-s", SPEC_WITHOUT_DROPOUT))
    steps = len(_losses(whole))
    kill_at = sorted(random.Random(3).sample(range(5, steps - 2), 3))
    arguments: list[object] = _options(lines_arrow, broken, "-s", SPEC_WITHOUT_DROPOUT)
    for world_size, workers, step in zip((1, 2, 4), (0, 2, 1), kill_at, strict=True):
        first = not (broken / "last.ckpt").exists()
        words = arguments if first else ["--resume", broken]

        def reached(step: int = step) -> bool:
            return (broken / "last.ckpt").exists() and _steps_in_ledger(broken) >= step

        run_until(world_size, reached, "--workers", workers, "--seed", 5, "train", *words)
    run(3, "--workers", 1, "--seed", 5, "train", "--resume", broken)
    _check_ledger(broken, epochs=3)
    assert _losses(broken) == pytest.approx(_losses(whole), rel=1e-4)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_bit_identical_to_two_that_were_not(
    lines_arrow: Path, tmp_path: Path
) -> None:
    """Dropout included: it follows from the step and the rank, not from what ran before."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    top = ("--workers", 1, "--seed", 5, "train")
    run(2, *top, *_options(lines_arrow, whole, "-s", TINY_SPEC))

    def reached() -> bool:
        return (broken / "last.ckpt").exists() and _steps_in_ledger(broken) >= 14

    assert run_until(2, reached, *top, *_options(lines_arrow, broken, "-s", TINY_SPEC))
    run(2, "train", "--resume", broken)
    assert unlike(whole / "last.ckpt", broken / "last.ckpt") == []
    _check_ledger(broken, epochs=3)


@pytest.mark.slow
@pytest.mark.parametrize("all_of_them", [True, False])
def test_sigterm_ends_all_processes_together(lines_arrow: Path, tmp_path: Path, all_of_them: bool) -> None:
    """A signal may come to any process at any place; talking from inside its handler would hang."""
    directory = tmp_path / "run"
    options = ["-f", "binary", "-B", 2, "-q", "fixed", "-N", 500, "-s", TINY_SPEC, "-o", directory]
    with started(2, "--workers", 0, "train", *options, lines_arrow, printed=tmp_path / "printed") as job:
        job.wait_for(lambda: len(rows(directory / "steps.jsonl")) > 40)
        for pid in [job.rank(rank) for rank in ((0, 1) if all_of_them else (1,))]:
            os.kill(pid, signal.SIGTERM)
        assert job.wait(25) == [128 + signal.SIGTERM] * 2
    assert f"ketos train --resume {directory}" in job.output
