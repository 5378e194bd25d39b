"""A run that was killed goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import TINY_SPEC, ketos
from .launching import command, rows, unlike


def _train(lines: Path, run: Path, *more: object) -> list[object]:
    options = ["-f", "binary", "-B", 4, "-q", "fixed", "-s", TINY_SPEC, "-o", run, *more, lines]
    return ["--workers", 1, "--seed", 5, "train", *options]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-F", 1], id="epochs", marks=pytest.mark.slow),
        pytest.param(["-F", 0.4, "--accumulate-grad-batches", 3], id="inside an epoch, accumulated"),
    ],
)
def test_a_killed_run_ends_bit_identical_to_an_undisturbed_one(
    lines_arrow: Path, tmp_path: Path, options: list[object]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ketos(*_train(lines_arrow, whole, "-N", 3, *options))
    words = command(1, *_train(lines_arrow, killed, "-N", 3, *options))
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (killed / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ketos("train", "--resume", killed)
    assert unlike(whole / "last.ckpt", killed / "last.ckpt") == []
    assert not list(killed.glob(".*.part"))


@pytest.mark.slow
def test_epochs_can_be_added_on_resuming(lines_arrow: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ketos(*_train(lines_arrow, run, "-N", 1))
    ketos("train", "--resume", run / "last.ckpt", "-N", 2)
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1]


def test_another_data_set_or_batch_size_is_refused_on_resuming(lines_arrow: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ketos(*_train(lines_arrow, run, "-N", 1))
    done = ketos("train", "--resume", run, "-N", 2, "--global-batch-size", 3, expect=2)
    assert "--global-batch-size (4 then, 3 now)" in done.stderr
    assert "--resume-anyway" in done.stderr
    done = ketos("--seed", 6, "train", "--resume", run, "-N", 2, expect=2)
    assert "--seed (5 then, 6 now)" in done.stderr
    # What was refused is not remembered, and a batch of one process is no part of the order.
    ketos("train", "--resume", run, "-N", 2, "-B", 3)


def test_a_changed_batch_is_accepted_anyway_from_the_start_of_an_epoch(
    lines_arrow: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    killed = command(1, *_train(lines_arrow, run, "-N", 2, "-F", 0.3))
    process = subprocess.Popen(killed, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (run / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ketos("train", "--resume", run, "--global-batch-size", 3, "--resume-anyway")
    report = json.loads(ketos("ledger", "--json", run, expect=1).stdout)
    # The epoch that was broken off stays so; the one begun anew is whole.
    assert [epoch["complete"] for epoch in report["epochs"]][-1]


def test_other_ground_truth_is_refused_on_resuming_unless_it_is_wanted(sample: Path, tmp_path: Path) -> None:
    lines = sorted((sample / "lines").glob("*.png"))
    run, few = tmp_path / "run", ["-f", "path", "-B", 4, "-q", "fixed", "-s", TINY_SPEC]
    ketos("train", *few, "-N", 1, "-o", run, *lines[:30])
    done = ketos("train", "--resume", run, "-N", 2, *lines[:20], expect=2)
    assert "started with other ground truth" in done.stderr
    done = ketos("train", "--resume", run, "-N", 2, "--resume-anyway", *lines[:20])
    assert "20 lines of 20 files" in done.stdout
    ketos("train", "--resume", run, "-N", 3)


def test_a_run_cut_by_pixels_keeps_its_epochs_when_it_is_resumed(lines_arrow: Path, tmp_path: Path) -> None:
    """Epochs then differ in length, and the one resumed must not be taken for as long as the first."""
    options = ["-B", 0, "--batch-pixels", 6000, "-F", 0.3]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ketos(*_train(lines_arrow, whole, *options, "-N", 3))
    words = command(1, *_train(lines_arrow, broken, *options, "-N", 3))
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(rows(broken / "metrics.jsonl")) < 4 and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ketos("train", "--resume", broken)
    steps = [(row["step"], row["epoch"]) for row in rows(whole / "steps.jsonl")]
    assert len({row["epoch"] for row in rows(whole / "steps.jsonl")}) == 3
    assert sorted({(row["step"], row["epoch"]) for row in rows(broken / "steps.jsonl")}) == steps


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_brings_its_ledger(lines_arrow: Path, tmp_path: Path) -> None:
    ketos(*_train(lines_arrow, tmp_path / "here", "-N", 1, "-F", 0.4))
    ketos("train", "--resume", tmp_path / "here", "-o", tmp_path / "there", "-N", 2)
    ketos("ledger", tmp_path / "there")


@pytest.mark.slow
def test_a_run_from_weights_and_from_elsewhere_can_be_resumed(lines_arrow: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    ketos(*_train(lines_arrow, first, "-N", 1))
    (weights,) = first.glob("best_*.safetensors")
    ketos(*_train(Path(os.path.relpath(lines_arrow, tmp_path)), second, "-N", 1, "-i", weights), cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    ketos("train", "--resume", second, "-N", 2, cwd=tmp_path / "elsewhere")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(lines_arrow: Path, tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    words = command(1, *_train(lines_arrow, run, "-N", 500))
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (run / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"ketos train --resume {run}" in errors.decode()
    assert b"Traceback" not in errors


def test_a_damaged_or_foreign_checkpoint_is_refused(lines_arrow: Path, tmp_path: Path) -> None:
    broken = tmp_path / "last.ckpt"
    broken.write_bytes(b"PK\x03\x04 and then nothing")
    done = ketos("train", "--resume", broken, "-f", "binary", lines_arrow, expect=2)
    assert "not a checkpoint of this program, or damaged" in done.stderr


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_a_checkpoint_cannot_execute_code(tmp_path: Path, lines_arrow: Path) -> None:
    hostile = tmp_path / "last.ckpt"
    torch.save({"ketos": _Payload()}, hostile)
    done = ketos("train", "--resume", hostile, "-f", "binary", lines_arrow, expect=2, cwd=tmp_path)
    assert "not a checkpoint of this program" in done.stderr
    assert not (tmp_path / "executed").exists()
