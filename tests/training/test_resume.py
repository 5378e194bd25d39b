"""A run that was broken off goes on as if it had not been, from a file, a directory, or what is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distrib.runtime.checkpoints.contents import STATE_KEY
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import newest_first
from distrib.stream.ledger_report import verify_ledger

from .comparing import STEPS_AN_EPOCH, at, checkpoints, differences, kinds, training
from .conftest import TINY_SPEC
from .forked import Server
from .launching import command, rows, run_until, unlike


def _train(lines: Path, run: Path, *more: object) -> list[object]:
    options = ["-f", "binary", "-B", 4, "-q", "fixed", "-s", TINY_SPEC, "-o", run, *more, lines]
    return ["--workers", 1, "--seed", 5, "train", *options]


@pytest.fixture(scope="module")
def done(server: Server, lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that has come to its end."""
    directory = tmp_path_factory.mktemp("done") / "run"
    server.run(*training(lines_arrow, directory))
    return directory


def copied(run: Path, to: Path) -> Path:
    """A copy in which names of one file stay names of one file."""
    shutil.copytree(run, to)
    newest = newest_first(run)[0].path.name
    (to / "last.ckpt").unlink()
    os.link(to / newest, to / "last.ckpt")
    return to


def damage(path: Path) -> None:
    """Change one bit in the middle, under all names that the file has."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


@pytest.mark.slow
def test_a_run_with_reader_processes_killed_by_the_system_ends_bit_identical(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["-N", 3, "-F", 0.4, "--accumulate-grad-batches", 3]
    server.run(*_train(lines_arrow, whole, *options))
    started = _train(lines_arrow, killed, *options)
    assert run_until(1, lambda: (killed / "last.ckpt").exists(), *started)
    server.run("train", "--resume", killed)
    assert unlike(whole / "last.ckpt", killed / "last.ckpt") == []
    assert not list(killed.glob(".*.part"))


def test_auto_starts_a_run_and_goes_on_with_one(
    server: Server, done: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    """The same words in a job that is put back into its queue, wherever it was when it was ended."""
    directory = tmp_path / "run"
    words = [*training(lines_arrow, directory), "--resume", "auto"]
    for call in (2, 5, 12):  # before and after there is anything to go on from
        server.start(*words, harm=at(call, "kill")).wait()
    server.start(*words, harm=at(3, "raise")).wait()
    server.run(*words)
    assert differences(done, directory) == []
    before = (directory / "steps.jsonl").read_bytes()
    server.run(*words)
    assert (directory / "steps.jsonl").read_bytes() == before


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_newest_checkpoint_is_reported_and_the_one_before_is_taken(
    server: Server, done: Path, tmp_path: Path, processes: int
) -> None:
    directory = copied(done, tmp_path / "run")
    newest, older = (each.path for each in newest_first(directory)[:2])
    damage(newest)
    printed = server.run("train", "--resume", directory, processes=processes)
    (line,) = [line for line in printed.splitlines() if "damaged" in line]
    assert line.startswith(str(newest))
    assert line.endswith("The next older one is tried.")
    (resumed,) = [row for row in rows(directory / "events.jsonl") if row["event"] == "resume"]
    assert resumed["checkpoint"] == str(older)
    assert verify_ledger(directory / "ledger").exact
    if processes == 1:
        assert unlike(done / "last.ckpt", directory / "last.ckpt") == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(
    server: Server, done: Path, lines_arrow: Path, tmp_path: Path, processes: int
) -> None:
    """It would write over what may yet be rescued."""
    directory = copied(done, tmp_path / "run")
    for path in directory.glob("checkpoint_*.ckpt"):
        damage(path)
    before = (directory / "steps.jsonl").read_bytes()
    words = [*training(lines_arrow, directory, epochs=3), "--resume", "auto"]
    job = server.start(*words, processes=processes)
    assert job.wait() == [2] * processes
    (sentence,) = job.errors
    assert f"{directory}: holds no whole checkpoint to resume from" in sentence
    assert (directory / "steps.jsonl").read_bytes() == before


def test_a_checkpoint_taken_elsewhere_needs_nothing_but_its_path(
    server: Server, done: Path, tmp_path: Path
) -> None:
    """Data, network and options are in it."""
    taken = tmp_path / "far" / "mine.ckpt"
    taken.parent.mkdir()
    shutil.copy(done / checkpoints(done)[0], taken)
    server.run("train", "--resume", taken, cwd=tmp_path)
    assert unlike(done / "last.ckpt", taken.parent / "last.ckpt") == []
    server.run("train", "--resume", taken.parent)


def test_an_older_checkpoint_makes_the_newer_ones_history(
    server: Server, done: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    directory, every = tmp_path / "run", ["--save-steps", 4, "--keep-last", 9]
    server.run(*training(lines_arrow, directory, *every))
    older = directory / "step_00000004.ckpt"
    # Its first checkpoint is written then, and the second is or is not.
    server.start("train", "--resume", older, harm=at(STEPS_AN_EPOCH - 3, "kill")).wait()
    newest = newest_first(directory)[0].path
    assert open_checkpoint(newest).common[STATE_KEY]["facts"]["step"] in (8, STEPS_AN_EPOCH)
    server.run("train", "--resume", directory)
    resumed = [row["checkpoint"] for row in rows(directory / "events.jsonl") if row["event"] == "resume"]
    assert resumed == [str(older), str(newest)]
    assert differences(done, directory) == []


def test_early_stopping_counts_on(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    """A restart that forgot the best score or the waiting would train longer, or shorter."""
    early = ["-q", "early", "--lag", 4, "--min-delta", 0.05, "-F", 0.3]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    server.run(*training(lines_arrow, whole, *early, epochs=9))
    steps = len(rows(whole / "steps.jsonl"))
    assert STEPS_AN_EPOCH < steps < 3 * STEPS_AN_EPOCH
    server.start(*training(lines_arrow, broken, *early, epochs=9), harm=at(8, "kill")).wait()
    server.start("train", "--resume", broken, harm=at(steps - 7, "term")).wait()
    server.run("train", "--resume", broken)
    assert unlike(whole / "last.ckpt", broken / "last.ckpt") == []
    assert rows(broken / "metrics.jsonl")[-1]["step"] == rows(whole / "metrics.jsonl")[-1]["step"]


def test_a_run_that_has_stopped_early_is_only_exported_again(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    early = ["-q", "early", "--lag", 1, "--min-delta", 0.5, "-F", 0.3]
    server.run(*training(lines_arrow, directory, *early, epochs=9))
    (export,) = directory.glob("best_*")
    weights, steps = export.read_bytes(), (directory / "steps.jsonl").read_bytes()
    assert len(rows(directory / "steps.jsonl")) == 6  # of the two validations the second is no better
    export.unlink()
    server.run("train", "--resume", directory)
    assert export.stat().st_size == len(weights)
    assert (directory / "steps.jsonl").read_bytes() == steps
    assert kinds(directory, "validation", "export") == ["validation"] * 2 + ["export"] * 2


def test_a_second_run_on_a_directory_is_refused_while_the_first_lives(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    first = server.start(*training(lines_arrow, directory, epochs=999))
    first.wait_for(lambda: (directory / "last.ckpt").exists())
    for words in (["train", "--resume", directory], training(lines_arrow, directory)):
        for processes in (1, 2):
            job = server.start(*words, processes=processes)
            assert job.wait() == [2] * processes
            (sentence,) = job.errors
            assert f"in use by another run (process {first.pids[0]} of " in sentence
    first.kill()
    began = time.monotonic()
    second = server.start("train", "--resume", directory)
    second.wait_for(lambda: kinds(directory, "first_batch")[1:])
    assert time.monotonic() - began < 10
    second.kill()


def test_a_run_goes_on_under_another_strategy(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    server.start(*training(lines_arrow, directory), harm=at(14, "term")).wait()
    server.run("train", "--resume", directory, "--strategy", "ddp", processes=2)
    assert verify_ledger(directory / "ledger").exact
    assert rows(directory / "checkpoints.jsonl")[-1]["strategy"] == "ddp"


@pytest.mark.slow
def test_epochs_can_be_added_on_resuming(server: Server, done: Path, tmp_path: Path) -> None:
    directory = copied(done, tmp_path / "run")
    server.run("train", "--resume", directory / "last.ckpt", "-N", 3)
    assert [row["epoch"] for row in rows(directory / "metrics.jsonl")] == [0, 1, 2]


def test_another_data_set_or_batch_size_is_refused_on_resuming(
    server: Server, done: Path, tmp_path: Path
) -> None:
    directory = copied(done, tmp_path / "run")
    job = server.start("train", "--resume", directory, "-N", 3, "--global-batch-size", 3)
    assert job.wait() == [2]
    assert "--global-batch-size (4 then, 3 now)" in job.output
    assert "--resume-anyway" in job.output
    job = server.start("--seed", 6, "train", "--resume", directory, "-N", 3)
    assert job.wait() == [2]
    assert "--seed (5 then, 6 now)" in job.output
    # What was refused is not remembered, and a batch of one process is no part of the order.
    server.run("train", "--resume", directory, "-N", 3, "-B", 3)


def test_a_changed_batch_is_accepted_anyway_from_the_start_of_an_epoch(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    server.start(*training(lines_arrow, directory), harm=at(5, "term")).wait()
    server.run("train", "--resume", directory, "--global-batch-size", 3, "--resume-anyway")
    report = verify_ledger(directory / "ledger")
    # The epoch that was broken off stays so; the one begun anew is whole.
    assert [epoch.complete for epoch in report.epochs] == [False, True]


def test_a_validation_that_was_due_is_not_made_up_for_where_the_batches_have_changed(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    """The rest of its epoch is not either: it would be counted for the next one."""
    directory = tmp_path / "run"
    job = server.start(
        *training(lines_arrow, directory, "-F", 0.3),
        harm=at(1, "term", place="distrib.training.recognition:texts_of"),
    )
    assert job.wait() == [143]
    server.run("train", "--resume", directory, "--global-batch-size", 3, "--resume-anyway")
    assert {row["epoch"] for row in rows(directory / "metrics.jsonl")} == {1}


def test_other_ground_truth_is_refused_on_resuming_unless_it_is_wanted(
    server: Server, sample: Path, tmp_path: Path
) -> None:
    lines = sorted((sample / "lines").glob("*.png"))
    run, few = tmp_path / "run", ["-f", "path", "-B", 4, "-q", "fixed", "-s", TINY_SPEC]
    server.run("train", *few, "-N", 1, "-o", run, *lines[:30])
    job = server.start("train", "--resume", run, "-N", 2, *lines[:20])
    assert job.wait() == [2]
    assert "started with other ground truth" in job.output
    printed = server.run("train", "--resume", run, "-N", 2, "--resume-anyway", *lines[:20])
    assert "20 lines of 20 files" in printed
    server.run("train", "--resume", run, "-N", 3)


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_brings_its_ledger(server: Server, done: Path, tmp_path: Path) -> None:
    server.run("train", "--resume", done, "-o", tmp_path / "there", "-N", 3)
    report = json.loads(server.run("ledger", "--json", tmp_path / "there"))
    assert [epoch["complete"] for epoch in report["epochs"]] == [True] * 3


@pytest.mark.slow
def test_a_run_from_weights_and_from_elsewhere_can_be_resumed(
    server: Server, done: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    (weights,) = done.glob("best_*.safetensors")
    lines = Path(os.path.relpath(lines_arrow, tmp_path))
    words = [
        "-f",
        "binary",
        "-q",
        "fixed",
        "-N",
        1,
        "-i",
        weights,
        "--resize",
        "union",
        "-o",
        tmp_path / "run",
        lines,
    ]
    server.run("train", *words, cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    server.run("train", "--resume", tmp_path / "run", "-N", 2, cwd=tmp_path / "elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on(lines_arrow: Path, tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    words = command(1, *_train(lines_arrow, run, "-N", 500))
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not (run / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"ketos train --resume {run}" in errors.decode()
    assert b"Traceback" not in errors


def test_a_damaged_or_foreign_checkpoint_is_refused(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "last.ckpt"
    broken.write_bytes(b"PK\x03\x04 and then nothing")
    job = server.start("train", "--resume", broken, "-f", "binary", lines_arrow)
    assert job.wait() == [2]
    assert "not a checkpoint of this program, or damaged" in job.output


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_a_checkpoint_cannot_execute_code(server: Server, tmp_path: Path, lines_arrow: Path) -> None:
    hostile = tmp_path / "last.ckpt"
    torch.save({"ketos": _Payload()}, hostile)
    job = server.start("train", "--resume", hostile, "-f", "binary", lines_arrow, cwd=tmp_path)
    assert job.wait() == [2]
    assert "not a checkpoint of this program" in job.output
    assert not (tmp_path / "executed").exists()
