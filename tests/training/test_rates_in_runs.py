"""Learning rates of whole runs: those of the closed forms, whatever number of processes and resumes."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .conftest import TINY_SPEC
from .forked import Harm, Server

pytestmark = pytest.mark.xdist_group("rates in runs")

_RATE, _LOWEST = 1e-2, 1e-4
_RUN = ("--workers", 0, "train", "-f", "binary", "--global-batch-size", 8, "-s", TINY_SPEC, "-r", _RATE)


def _rows(run: Path) -> dict[int, dict[str, Any]]:
    """The steps of a run by number; of those done twice the later."""
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def test_cosine_and_warmup_follow_from_the_global_step_alone(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    """Two processes, killed in their second epoch, and one that goes on draw one curve."""
    run = tmp_path / "run"
    words = (*_RUN, "-B", 4, "--schedule", "cosine", "--cos-max", 2, "--cos-min-lr", _LOWEST, "--warmup", 4)
    kill = Harm(place="distrib.training.learner:Learner.training_step", calls=(8,), do="kill", rank=None)
    job = server.start(*words, "-q", "fixed", "-N", 3, "-o", run, lines_arrow, processes=2, harm=[kill])
    assert set(job.wait()) == {-9}
    server.run("train", "--resume", run)
    rows = _rows(run)
    steps = len(rows) // 3
    assert len(rows) == 3 * steps
    for number, row in rows.items():
        share = min(number / steps / 2, 1)
        rate = _LOWEST + (_RATE - _LOWEST) * (1 + math.cos(math.pi * share)) / 2
        assert row["lrate"] == pytest.approx(rate * min(1, (number + 1) / 4), rel=1e-6)


def test_annealing_cools_once_and_stops(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    """An improvement that counts is never seen: one validation to set the mark, one to lag, one to cool."""
    run = tmp_path / "run"
    words = (*_RUN, "-B", 8, "-q", "aneal", "--lag", 1, "--min-delta", 2, "--cos-min-lr", _LOWEST)
    server.run(*words, "-o", run, lines_arrow)
    rates = [row["lrate"] for row in _rows(run).values()]
    steps = len(rates) // 3
    assert len(rates) == 3 * steps
    assert rates[: 2 * steps] == [_RATE] * 2 * steps
    assert all(later < earlier for earlier, later in pairwise(rates[2 * steps :]))
    assert rates[-1] < _RATE / 2


def test_a_plateau_lowers_the_rate_across_a_resume(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    """The validations waited before a resume count after it."""
    run = tmp_path / "run"
    words = (*_RUN, "-B", 8, "-q", "fixed", "--schedule", "reduceonplateau", "--sched-patience", 1, "-g", 0.5)
    server.run(*words, "-N", 2, "-o", run, "-r", 1e-7, lines_arrow)
    server.run("train", "--resume", run, "-N", 4)
    by_epoch = {row["epoch"]: row["lrate"] for row in _rows(run).values()}
    # Nothing is learned at such a rate, so that only the first validation counts as better than none.
    assert by_epoch[0] == by_epoch[1] == by_epoch[2] == 1e-7
    assert by_epoch[3] == 5e-8
