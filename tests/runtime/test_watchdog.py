"""A process that hangs is found, shown with its stacks, and ends: nobody waits for it for ever."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distrib.runtime.directory.endings import read_endings
from distrib.runtime.directory.machine import ProcessIdentity, this_process
from distrib.runtime.phases import Phases
from distrib.runtime.stall_report import ReportFolder, StallReport, culprit_of, verdict_of
from distrib.runtime.watchdog import Watch, Watchdog

from ..training.jobs import two_of

WORKER = """
import os, signal, sys, time
from pathlib import Path
from distrib.runtime.processes import joined
from distrib.runtime.topology import topology_of
from distrib.runtime.watchdog import Watch, watched

limit, harm = float(sys.argv[2]), sys.argv[3]

def slow_read():
    time.sleep(600)

with joined(topology_of(os.environ), device="cpu") as processes:
    watch = Watch(limit=limit, grace=1.5, advice="go on")
    with watched(processes, Path(sys.argv[1]), watch, environ=os.environ):
        for step in range(20):
            processes.phases.enter(f"reading the data of step {step}", data=True)
            if step == 3 and processes.topology.rank == 1:
                if harm == "read":
                    slow_read()
                if harm == "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
            processes.phases.enter(f"computing step {step}")
            processes.sum([1.0])
    print("done", flush=True)
"""


def launch(run: Path, harm: str, limit: float = 1.5) -> list[tuple[int, str, int]]:
    """Exit code, stderr and pid of two processes of ``WORKER``, by rank."""
    (run / "attempt").mkdir(parents=True)
    variables = {"KETOS_ATTEMPT": str(run / "attempt")}
    with two_of(WORKER, run, run, limit, harm, variables=variables) as jobs:
        return [(job.wait(60)[0], job.stderr, job.pids[0]) for job in jobs]


def test_a_process_stuck_in_a_read_is_named_with_the_stacks_of_all(tmp_path: Path) -> None:
    (code, said, _), (other, said_there, _) = launch(tmp_path, "read")
    assert (code, other) == (1, 1)
    sentences = [line for line in (said + said_there).splitlines() if line.startswith("Error: ")]
    assert len(sentences) == 1, said + said_there
    assert f"Process 1 on {socket.gethostname()} has been reading the data of step 3 for" in sentences[0]
    assert "the stacks of all processes are in" in sentences[0]
    assert sentences[0].endswith("; go on.")
    stacks = {path.name: path.read_text() for path in (tmp_path / "stacks").rglob("*.txt")}
    assert sorted(stacks) == ["rank-0.txt", "rank-1.txt"]
    assert "in slow_read" in stacks["rank-1.txt"]
    assert "phase: waiting for the other processes (computing step 3)" in stacks["rank-0.txt"]
    endings = read_endings(tmp_path / "attempt")
    assert {ending.cause for ending in endings.values()} == {"timeout"}
    assert sorted(endings) == [0, 1]


def test_a_stopped_process_is_named_by_the_others_and_ended(tmp_path: Path) -> None:
    """It holds a GPU, and a launcher that ends processes politely cannot end it."""
    (code, said, _), (other, _, _) = launch(tmp_path, "stop")
    assert (code, other) == (1, -signal.SIGKILL)
    assert f"Error: Process 1 on {socket.gethostname()} is stopped, and process 0 has been waiting" in said
    assert [path.name for path in (tmp_path / "stacks").rglob("*.txt")] == ["rank-0.txt"]


def test_a_job_without_a_stall_leaves_nothing_behind(tmp_path: Path) -> None:
    assert [code for code, _, _ in launch(tmp_path, "none", limit=30)] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["attempt"]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def identity(host: str, pid: int = 1) -> ProcessIdentity:
    return ProcessIdentity(host=host, boot_id="b", pid_namespace="n", pid=pid, start=1)


def a_watchdog(folder: Path, clock: Clock, **more: Any) -> tuple[Watchdog, Phases]:
    phases = Phases(clock)
    return Watchdog(
        more.pop("watch", Watch(limit=60)),
        phases,
        rank=0,
        identities=more.pop("identities", [this_process()]),
        folder=folder,
        clock=clock,
        **more,
    ), phases


def test_a_phase_is_as_old_as_it_is_and_a_new_one_is_new(tmp_path: Path) -> None:
    clock = Clock()
    dog, phases = a_watchdog(tmp_path, clock)
    for _ in range(30):
        clock.now += 1
        age = dog.observe()
    assert age == pytest.approx(30)
    phases.enter("reading", data=True)
    clock.now += 1
    assert dog.observe() == pytest.approx(1)


def test_a_job_that_was_suspended_has_not_hung(tmp_path: Path) -> None:
    """Schedulers suspend jobs for hours and let them go on; they must not be ended for it."""
    clock = Clock()
    dog, _ = a_watchdog(tmp_path, clock)
    dog.observe()
    clock.now += 7200
    assert dog.observe() < 10


def test_a_process_alone_ends_itself(tmp_path: Path) -> None:
    left, said, told = threading.Event(), [], []
    dog, phases = a_watchdog(
        tmp_path / "stacks" / "x",
        Clock(),
        watch=Watch(limit=0.2, notice=0.05, grace=0.2),
        leave=lambda _: left.set(),
        say=said.append,
        on_event=lambda kind, facts: told.append((kind, facts)),
    )
    dog._clock = time.monotonic
    dog._at = time.monotonic()
    phases._clock = time.monotonic
    phases.enter("reading the data of step 4", data=True)
    dog.start()
    assert left.wait(30)
    assert len(said) == 1
    assert "has been reading the data of step 4 for" in said[0]
    assert f"its stacks are in {tmp_path / 'stacks' / 'x'}" in said[0]
    assert [kind for kind, _ in told] == ["stall", "timeout"]
    assert told[0][1]["phase"] == "reading the data of step 4"


def test_a_disk_that_does_not_answer_does_not_keep_the_process(tmp_path: Path) -> None:
    """The commonest cause of a stall is the disk that the stacks would be written to."""
    left, said = threading.Event(), []
    (tmp_path / "file").write_text("")
    clock = Clock()
    dog, phases = a_watchdog(
        tmp_path / "file" / "x",
        clock,
        watch=Watch(limit=0.2, grace=0.1),
        leave=lambda _: left.set(),
        say=said.append,
    )
    dog._clock = phases._clock = time.monotonic
    dog._at = time.monotonic()
    phases.enter("saving")
    dog.start()
    assert left.wait(30)
    assert "has been saving" in said[0]
    assert "cannot be written" in said[0]


def test_phases_go_on_after_an_exchange_and_count_them() -> None:
    clock = Clock()
    phases = Phases(clock)
    phases.enter("computing step 1")
    with phases.exchange():
        assert phases.current.exchange == 1
        clock.now += 5
    assert (phases.current.name, phases.current.exchange, phases.current.exchanges) == (
        "computing step 1",
        0,
        1,
    )
    assert phases.current.since == clock.now
    with phases.within("saving"):
        assert phases.current.name == "saving"
    assert phases.current.name == "computing step 1"


def test_another_thread_says_nothing_of_the_main_one() -> None:
    """A checkpoint written in the background must not hide where the training hangs."""
    phases = Phases()
    phases.enter("computing")
    thread = threading.Thread(target=lambda: phases.enter("writing"))
    thread.start()
    thread.join()
    assert phases.current.name == "computing"


def report(rank: int, *, exchange: int = 0, exchanges: int = 5, **more: Any) -> StallReport:
    values = {"host": f"n{rank}", "pid": 1, "phase": "computing", "seconds": 9.0, "data": False, **more}
    return StallReport(rank=rank, exchange=exchange, exchanges=exchanges, **values)


@pytest.mark.parametrize(
    ("reports", "culprit"),
    [
        pytest.param([report(0, exchange=5), report(1)], 1, id="not in the exchange"),
        pytest.param([report(0, exchange=5), report(1, exchange=4, exchanges=4)], 1, id="in an earlier one"),
        pytest.param([report(0, exchange=5), report(1, exchange=5)], None, id="the network"),
        pytest.param([report(0), report(1, exchanges=4)], 1, id="fewer exchanges begun"),
        pytest.param([report(0), report(1, seconds=30.0)], 1, id="longer at it"),
        pytest.param([report(0), report(1)], 0, id="the one that asked"),
    ],
)
def test_the_process_that_the_others_wait_for_is_to_blame(
    reports: list[StallReport], culprit: int | None
) -> None:
    assert culprit_of({each.rank: each for each in reports}, asker=0) == culprit


def test_the_verdict_names_rank_host_phase_and_place() -> None:
    both = {0: report(0, exchange=5), 1: report(1, phase="reading the data of step 12", data=True)}
    told = verdict_of(both, ["n0", "n1"], asker=0, stacks=Path("/run/stacks/x"), states={})
    assert told.sentence == (
        "Process 1 on n1 has been reading the data of step 12 for 9 s; look at the disk that holds the data, "
        "and at its readers; the stacks of all processes are in /run/stacks/x."
    )
    assert told.speaker == 0
    silent = verdict_of({1: report(1, exchange=5)}, ["n0", "n1", "n2"], asker=1, stacks=Path("/s"), states={})
    assert silent.sentence.startswith(
        "Process 0 on n0 does not answer (nor does process 2), and process 1 has"
    )
    assert silent.speaker == 1


def test_a_torn_report_counts_as_none(tmp_path: Path) -> None:
    folder = ReportFolder(tmp_path)
    (tmp_path / "rank-0.json").write_text('{"rank": 0')
    (tmp_path / "rank-1.json").write_text(json.dumps({"rank": 1}))
    (tmp_path / "verdict.json").write_text("[]")
    assert folder.reports() == {}
    assert folder.verdict is None
    assert not folder.requested
