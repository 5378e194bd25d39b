"""The keeper of a machine's processes, which nobody watches: it must end them, and let them save before."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers.ray.keeper import HURRY, NONCE, record_path

WAIT_SECONDS = 30.0
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(600)
"""
DEAF = """
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("ready").touch()
time.sleep(600)
"""


class Talk:
    """A keeper, spoken to as Ray's worker does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / NONCE).write_text("nonce", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launchers.ray.keeper", str(folder), "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.facts = self.hear()["facts"]

    def hear(self) -> dict[str, Any]:
        """The next message; empty at the end."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {}

    def say(self, order: dict[str, Any]) -> None:
        """Give an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def start(self, *programs: str) -> None:
        """Let it start programs in Python, and wait for those that say so."""
        processes = [
            {"rank": rank, "log": str(self.folder / f"rank-{rank}.log"), "environment": {"RANK": str(rank)}}
            for rank in range(len(programs))
        ]
        words = [sys.executable, "-c", f"import os; exec({list(programs)!r}[int(os.environ['RANK'])])"]
        self.say({"start": {"words": words, "folder": str(self.folder), "processes": processes}})
        if any("ready" in program for program in programs):
            _until(lambda: (self.folder / "ready").exists())

    def hang_up(self) -> None:
        """Go, as a worker does that Ray kills."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def record(self) -> dict[str, int]:
        """What it leaves in the folder at its end."""
        _until(lambda: record_path(self.folder, 0).exists())
        return dict(json.loads(record_path(self.folder, 0).read_bytes())["codes"])


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    """A keeper, gone at the end."""
    begun = Talk(tmp_path)
    yield begun
    begun.hang_up()
    with contextlib.suppress(ProcessLookupError):
        os.kill(begun.facts["pid"], signal.SIGKILL)


def _until(reached: Any) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_sees_what_the_driver_has_written(talk: Talk) -> None:
    """Without this a run directory that is not shared would be found after hours, or never."""
    assert talk.facts["seen"] == "nonce"
    assert talk.facts["writable"]


def test_it_is_no_child_of_the_worker(talk: Talk) -> None:
    """Ray kills the children of a worker with it: nothing could be saved."""
    assert talk.process.wait(WAIT_SECONDS) == 0
    os.kill(talk.facts["pid"], 0)


def test_processes_save_when_the_worker_is_gone(talk: Talk) -> None:
    """They must neither stay for ever nor lose what they have."""
    talk.start(SAVES)
    talk.hang_up()
    assert talk.record() == {"0": 143}
    assert (talk.folder / "saved").exists()


def test_processes_that_do_not_end_are_killed(talk: Talk) -> None:
    """One that hangs would hold the machine."""
    talk.start(DEAF)
    talk.say({"stop": 0.2})
    assert talk.hear() == {"ended": {"rank": 0, "code": -9}}
    assert talk.record() == {"0": -9}


def test_a_driver_whose_machine_is_lost_can_hurry_keepers_without_workers(talk: Talk) -> None:
    """Processes that wait for the lost one would keep the next attempt waiting for minutes."""
    talk.start(DEAF)
    talk.hang_up()
    (talk.folder / HURRY).write_text("0.1", encoding="utf-8")
    assert talk.record() == {"0": -9}


def test_processes_end_with_a_keeper_that_is_killed(talk: Talk) -> None:
    """Where memory runs out the kernel may choose the keeper."""
    talk.start(SAVES)
    os.kill(talk.facts["pid"], signal.SIGKILL)
    _until(lambda: (talk.folder / "saved").exists())


def test_each_end_is_told_and_kept(talk: Talk) -> None:
    """The driver knows by these what to do next."""
    talk.start("", "raise SystemExit(3)")
    told = [talk.hear()["ended"], talk.hear()["ended"]]
    assert {(end["rank"], end["code"]) for end in told} == {(0, 0), (1, 3)}
    assert talk.hear() == {}
    assert talk.record() == {"0": 0, "1": 3}


def test_what_is_told_to_end_before_it_starts_never_starts(talk: Talk) -> None:
    """An order to start may come later than the one to end."""
    talk.say({"stop": 5.0})
    assert talk.hear() == {}
    assert talk.record() == {}
