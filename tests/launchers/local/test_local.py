"""The local target with real processes: hurt, ended, detached, out of memory; it goes on or says why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.runtime.directory.events import EVENTS, read_events
from launchers.plan import read_plan

from ...training.forked import shared

pytestmark = pytest.mark.slow

_WAIT = 240.0


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "distrib", *map(str, words)]


def _ketos(*words: object, expect: int = 0) -> str:
    done = subprocess.run(_command(*words), capture_output=True, text=True, check=False, timeout=_WAIT)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def _until(reached: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + _WAIT
    while not reached():
        assert time.monotonic() < deadline, "it did not come that far"
        assert process is None or process.poll() is None, "it ended before"
        time.sleep(0.02)


def _events(run: Path, kind: str) -> list[dict[str, object]]:
    return [event for event in read_events(run / EVENTS) if event["event"] == kind]


def _causes(run: Path) -> list[object]:
    return [event["cause"] for event in _events(run, "attempt_end")]


def _started(experiment: Path, *words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _command("--config", experiment, "launch", "local", "--procs-per-node", 2, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _ranks(run: Path) -> list[int]:
    """The process ids of the ranks of a run, not of the processes that read for them."""
    found = {}
    ours = [os.fsencode(word) for word in read_plan(run).words()]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1 : len(ours)] == ours[1:]:
            stat = (entry / "stat").read_text()
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return [process for process, parent in found.items() if parent not in found]


def test_a_killed_rank_is_answered_by_another_attempt(
    tmp_path: Path, experiment: Path, launch_lines: Path
) -> None:
    run = tmp_path / "run"
    process = _started(experiment, "--", "train", "-N", 3, "-o", run, launch_lines)
    _until(lambda: _events(run, "save"), process)
    os.kill(_ranks(run)[-1], signal.SIGKILL)
    assert process.wait(_WAIT) == 0
    assert _causes(run) == ["killed", "done"]
    assert _events(run, "resume")
    _ketos("ledger", run)
    assert list(run.glob("best_*.safetensors"))
    assert "killed after" in _ketos("launch", "status", run)
    assert _ketos("launch", "logs", "--rank", 1, "--attempt", 1, run) is not None


def test_a_killed_elastic_agent_costs_the_run_nothing(
    tmp_path: Path, experiment: Path, launch_lines: Path
) -> None:
    """Its processes still save when that is seen. Broken: the next attempt finds the directory in use."""
    run = tmp_path / "run"
    process = _started(experiment, "--", "train", "-N", 3, "-o", run, launch_lines)
    _until(lambda: _events(run, "save"), process)
    (elastic,) = {int(Path(f"/proc/{rank}/stat").read_text().split()[3]) for rank in _ranks(run)}
    os.kill(elastic, signal.SIGKILL)
    assert process.wait(_WAIT) == 0
    assert _causes(run) == ["preempted", "done"]
    _ketos("ledger", run)


def test_the_end_of_the_agent_is_that_of_its_processes_and_another_goes_on(
    tmp_path: Path, experiment: Path, launch_lines: Path
) -> None:
    """An agent killed without a word must not leave processes that nobody watches."""
    run = tmp_path / "run"
    words = ["--", "train", "-N", 3, "-o", run, launch_lines]
    process = _started(experiment, *words)
    _until(lambda: _events(run, "save"), process)
    process.kill()
    process.wait()
    _until(lambda: not _ranks(run))
    assert "lost" in _ketos("launch", "status", run)
    process = _started(experiment, *words)
    _until(lambda: len(_events(run, "first_batch")) > 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(_WAIT) == 143
    assert not _ranks(run)
    assert _causes(run) == ["preempted"]
    process = _started(experiment, *words)
    assert process.wait(_WAIT) == 0
    _ketos("ledger", run)


def test_a_detached_run_is_seen_waited_for_and_cancelled_by_its_directory(
    tmp_path: Path, experiment: Path, launch_lines: Path
) -> None:
    run = tmp_path / "run"
    words = ["--", "train", "-N", 500, "-o", run, launch_lines]
    _ketos("--config", experiment, "launch", "local", "--procs-per-node", 2, "--detach", *words)
    _until(lambda: _events(run, "save"))
    (found,) = json.loads(_ketos("launch", "status", "--json", run))
    assert found["state"] == "running"
    told = _ketos("--config", experiment, "launch", "local", *words, expect=2)
    assert "is launched already" in told
    _ketos("launch", "cancel", run)
    assert "cancelled" in _ketos("launch", "wait", run, expect=130)
    assert not _ranks(run)
    assert "has ended already" in _ketos("launch", "cancel", run)


_OUT_OF_MEMORY = """
import sys

# Not in the programs that start the processes of the run, and have the same environment.
if sys.orig_argv[sys.orig_argv.index("-m") + 1] == "distrib":
    import torch
    from distrib.training.recognition import RecognitionModule as Module

    _loss = Module.loss

    def loss(self, batch, place):
        if len(batch.lines) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return _loss(self, batch, place)

    Module.loss = loss
"""


def test_where_memory_does_not_suffice_a_smaller_batch_walks_the_same_curve(
    tmp_path: Path, experiment: Path, launch_lines: Path
) -> None:
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(_OUT_OF_MEMORY, encoding="utf-8")
    run, free = tmp_path / "run", tmp_path / "free"
    bounded = ["launch", "local", "--env", f"PYTHONPATH={patch}", "--auto-batch", "--"]
    words = ["train", "-N", 1, "-B", 2, launch_lines, "-o"]
    told = _ketos("--config", experiment, *bounded, *words, run)
    assert "out of memory" in told.lower()
    assert _causes(run) == ["memory", "done"]
    shared().run("--config", experiment, *words, free)
    losses = [
        [json.loads(row)["loss"] for row in (each / "steps.jsonl").read_text().splitlines()]
        for each in (run, free)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_bad_input_is_said_once_and_not_tried_again(tmp_path: Path, experiment: Path) -> None:
    run = tmp_path / "run"
    words = ["launch", "local", "--procs-per-node", 2, "--", "train", "-o", run, tmp_path / "none.arrow"]
    told = _ketos("--config", experiment, *words, expect=2)
    assert "none.arrow" in told
    assert "Traceback" not in told
    assert _causes(run) == ["input"]


def test_a_debugger_finds_one_process(tmp_path: Path, experiment: Path, launch_lines: Path) -> None:
    run = tmp_path / "run"
    words = ["launch", "local", "--debug", "--", "train", "-N", 1, "-o", run, launch_lines]
    told = _ketos("--config", experiment, *words)
    assert "1 process" in told
    assert not (run / "launch").exists()
