"""One attempt on this machine, with small programs in place of the command: signals, ends, what is left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from distrib.config.launching import LocalLaunch
from distrib.runtime.directory.endings import read_endings
from distrib.runtime.directory.events import EVENTS, EventLog
from launchers.attempts import Attempt, Outcome
from launchers.local.executor import start_attempt
from launchers.local.ranks import living
from launchers.places import launch_folder
from launchers.plan import LaunchPlan
from launchers.stop import StopRequest

SAVES = """
import os, pathlib, signal, sys, time
def save(*_):
    time.sleep(2)
    pathlib.Path("saved-" + os.environ["RANK"]).touch()
    os._exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready-" + os.environ["RANK"]).touch()
time.sleep(600)
"""
DEAF = SAVES.replace("save)", "signal.SIG_IGN)")


def _plan(folder: Path, **options: object) -> LaunchPlan:
    return LaunchPlan(
        target="local",
        name="test",
        run_dir=folder,
        command="train",
        folder=folder,
        python=sys.executable,
        options=LocalLaunch(procs_per_node=2, **options),  # type: ignore[arg-type]
    )


class Started:
    """An attempt under way in a thread, with ``program`` as its command."""

    def __init__(self, folder: Path, *words: str, grace: float = 30.0, **options: object) -> None:
        self.folder = folder
        plan = _plan(folder, **options)
        environment = {"KETOS_ATTEMPT": str(folder), "PYTHONSAFEPATH": "1"}
        self._attempt = Attempt(number=1, folder=folder, words=words, environment=environment)
        launch_folder(folder).mkdir()
        self._stop, self._future = StopRequest(folder), Future[Outcome]()
        threading.Thread(target=self._run, args=(plan, grace), daemon=True).start()

    def _run(self, plan: LaunchPlan, grace: float) -> None:
        try:
            self._future.set_result(start_attempt(plan, self._attempt, self._stop, grace=grace))
        except BaseException as error:
            self._future.set_exception(error)

    def until(self, reached: Callable[[], object]) -> None:
        """Return when that is so."""
        deadline = time.monotonic() + 60
        while not reached():
            assert not self._future.done(), self._future.result()
            assert time.monotonic() < deadline, "it did not come that far"
            time.sleep(0.02)

    def until_ready(self) -> None:
        """Return when both processes heed signals, or ignore them."""
        self.until(lambda: len(list(self.folder.glob("ready-*"))) == 2)

    def stop(self) -> None:
        """Ask for the end."""
        self._stop.note(signal.SIGTERM)

    def elastic(self) -> int | None:
        """The process that starts the others, once its answer to signals is settled."""
        mark = [b"launchers.local.elastic", str(self.folder).encode()]
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes()
                if not all(word in line for word in mark):
                    continue
                status = dict(row.split(":\t", 1) for row in (entry / "status").read_text().splitlines())
            except OSError:
                continue
            heeded = int(status["SigBlk"], 16) | int(status["SigCgt"], 16)
            return int(entry.name) if heeded >> (signal.SIGUSR2 - 1) & 1 else None
        return None

    def outcome(self, within: float) -> Outcome:
        """How it came out."""
        return self._future.result(timeout=within)

    def saved(self) -> list[str]:
        """Processes that could save."""
        return sorted(path.name for path in self.folder.glob("saved-*"))


def _python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def test_told_to_end_while_it_starts(tmp_path: Path) -> None:
    """Broken: a signal that comes before there are processes is lost, and they run for the whole grace."""
    started = Started(tmp_path, *_python(SAVES), grace=120.0)
    started.until(started.elastic)
    started.stop()
    assert started.outcome(within=45).code in (143, -signal.SIGUSR2)


def test_no_process_is_left_when_the_elastic_agent_is_killed(tmp_path: Path) -> None:
    """Broken: the next attempt meets processes that still save, and takes the directory for another's."""
    started = Started(tmp_path, *_python(SAVES))
    started.until_ready()
    elastic = started.elastic()
    assert elastic is not None
    os.kill(elastic, signal.SIGKILL)
    assert started.outcome(within=30).code == -signal.SIGKILL
    assert started.saved() == ["saved-0", "saved-1"]


@pytest.mark.parametrize("killed", [False, True])
def test_processes_that_do_not_end_are_killed(tmp_path: Path, killed: bool) -> None:
    """Broken: a process that hangs keeps the launch from going on or from ending."""
    started = Started(tmp_path, *_python(DEAF), grace=1.0)
    started.until_ready()
    elastic = started.elastic()
    assert elastic is not None
    assert len(living(tmp_path)) == 2
    if killed:
        os.kill(elastic, signal.SIGKILL)
    else:
        started.stop()
    outcome = started.outcome(within=30)
    assert not living(tmp_path)
    assert outcome.code == (-signal.SIGKILL if killed else 128 + signal.SIGKILL)


def test_processes_end_though_their_folder_is_gone(tmp_path: Path) -> None:
    """Broken: who deletes a run directory leaves processes that nobody can end but by hand."""
    started = Started(tmp_path, *_python(DEAF), grace=1.0)
    started.until_ready()
    for path in tmp_path.glob("rank-*.pid"):
        path.unlink()
    started.stop()
    assert started.outcome(within=12).code == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_processes_have_their_time_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """When the agent of the launch dies, too. Broken: torch's own patience kills them while they save."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    started = Started(tmp_path, *_python(SAVES))
    started.until_ready()
    elastic = started.elastic()
    assert elastic is not None
    os.kill(elastic, number)
    assert started.outcome(within=30).code == 143
    assert started.saved() == ["saved-0", "saved-1"]


def test_a_program_that_cannot_be_run_is_bad_input(tmp_path: Path) -> None:
    """Broken: a mistake is taken for an accident, and tried again."""
    started = Started(tmp_path, str(tmp_path / "none"), "-m", "distrib")
    assert started.outcome(within=45).code == 2
    endings = read_endings(tmp_path)
    assert {ending.cause for ending in endings.values()} == {"input"}
    assert "none: cannot be run on" in endings[min(endings)].sentence
    log = (tmp_path / f"rank-{min(endings)}.log").read_text()
    assert log == f"Error: {endings[min(endings)].sentence}\n"


def test_the_time_limit_is_that_of_the_launch(tmp_path: Path) -> None:
    """Broken: each attempt has the whole time again; and its end is called a person's wish."""
    events = EventLog(tmp_path / EVENTS)
    events.append("launch", target="local")
    text = (tmp_path / EVENTS).read_text()
    year = text.index('"time"') + len('"time": "')
    (tmp_path / EVENTS).write_text(f"{text[:year]}2001{text[year + 4 :]}")
    outcome = Started(tmp_path, *_python(SAVES), time="10").outcome(within=30)
    assert (outcome.code, outcome.cause) == (1, "time")
    assert "time limit" in (outcome.sentence or "")
    assert not list(tmp_path.glob("ready-*"))
