"""Processes that talk to each other: one sentence where they fail, and nobody waits for one that is gone."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from distrib.errors import InputError, PeerError, RunError
from distrib.runtime.processes import Processes, joined, peer_gone
from distrib.runtime.topology import Topology

from ..training.jobs import two_of

WORKER = '''
import json, os
import torch
from contextlib import contextmanager
from distrib.errors import InputError, KetosError, RunError
from distrib.runtime.processes import joined
from distrib.runtime.topology import topology_of

told, held = [], []

def fail(error, *ranks):
    """What raises at these ranks; 10 times the rank at the others."""
    def function():
        if processes.topology.rank in ranks:
            raise error
        return processes.topology.rank * 10
    return function

def outcome(action):
    try:
        return action()
    except KetosError as error:
        return [type(error).__name__, error.exit_code, str(error)]

@contextmanager
def context():
    held.append("entered")
    yield
    held.append("left")

with joined(topology_of(os.environ), device="cpu") as processes:
    rank = processes.topology.rank
    told.append(processes.sum([rank, 0.5]))
    told.append(processes.sum_tensor(torch.full((2,), float(rank + 1))).tolist())
    told.append(processes.gather("ab"[rank] * (rank + 1)))
    told.append(outcome(lambda: processes.agree(fail(None))))
    told.append(outcome(lambda: processes.agree(fail(InputError("of one"), 1))))
    told.append(outcome(lambda: processes.agree(fail(RunError("of both"), 0, 1))))
    told.append(outcome(lambda: processes.on_first(lambda: {"rank": rank})))
    told.append(outcome(lambda: processes.on_first(fail(InputError("of the first"), 0))))
    told.append(outcome(lambda: processes.stop(RunError("of all"))))
    with processes.first_holds(context):
        told.append(len(held))
    told.append(held)
    print(json.dumps(told), flush=True)
    if rank == 1:
        os.kill(os.getpid(), 9)
    processes.sum([1.0])
'''


def launch(folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Two processes of ``WORKER``, by rank."""
    with two_of(WORKER, folder) as jobs:
        codes = [job.wait(60)[0] for job in jobs]
    ended = zip(jobs, codes, strict=True)
    return [subprocess.CompletedProcess((), code, job.output, job.stderr) for job, code in ended]


def test_two_processes_come_to_the_same_results_and_errors(tmp_path: Path) -> None:
    first, second = launch(tmp_path)
    told = [json.loads(process.stdout) for process in (first, second)]
    assert told[0][:3] == told[1][:3] == [[1.0, 1.0], [3.0, 3.0], ["a", "bb"]]
    assert [each[3] for each in told] == [0, 10]
    # The one that failed says why; the other ends with the same code, in silence.
    assert told[1][4] == ["InputError", 2, "of one"]
    assert told[0][4][:2] == ["PeerError", 2]
    assert told[0][5] == ["RunError", 1, "of both"]
    assert told[1][5][:2] == ["PeerError", 1]
    assert told[0][6] == told[1][6] == {"rank": 0}
    assert told[0][7] == ["InputError", 2, "of the first"]
    assert told[1][7][:2] == ["PeerError", 2]
    assert told[0][8] == ["RunError", 1, "of all"]
    assert told[1][8][:2] == ["PeerError", 1]
    assert [each[9:] for each in told] == [[1, ["entered", "left"]], [0, []]]
    # Afterwards one was killed, and the other waits for nobody.
    assert second.returncode == -9
    assert first.returncode == 1
    assert "PeerLost: Another process of this job has ended" in first.stderr


def test_one_process_talks_to_nobody() -> None:
    with joined(Topology(), device="cpu") as processes:
        assert processes.sum([2, 0.5]) == [2, 0.5]
        assert processes.gather("x") == ["x"]
        assert processes.agree(lambda: 3) == 3
        assert processes.on_first(lambda: 4) == 4
        tensor = torch.ones(2)
        assert processes.sum_tensor(tensor) is tensor
        with pytest.raises(RunError, match="mine"):
            processes.stop(RunError("mine"))


def test_an_error_of_one_process_is_its_own() -> None:
    def fail() -> None:
        raise InputError("mine")

    with pytest.raises(InputError, match="mine"):
        Processes(Topology()).agree(fail)


def test_what_the_first_holds_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    left = []

    @contextmanager
    def context():  # type: ignore[no-untyped-def]
        try:
            yield
        except PeerError:
            left.append(True)
            raise

    with pytest.raises(PeerError), Processes(Topology()).first_holds(context):
        raise PeerError(1, 2)
    assert left


@pytest.mark.parametrize("reason", ["", "no such host"])
def test_processes_that_cannot_join_say_where_they_tried(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if reason:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "no port")
    with (
        pytest.raises(InputError, match="MASTER_PORT=no port" if reason else "Process 1 of 2 cannot join"),
        joined(Topology(rank=1, world_size=2, local_world_size=2, local_rank=1), device="cpu"),
    ):
        pass


@pytest.mark.parametrize(
    ("message", "gone"),
    [
        ("[../gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:1", True),
        ("[c10d] recvValueWithTimeout failed: Connection reset by peer", True),
        ("NCCL error: unhandled system error", True),
        ("[../gloo/transport/tcp/pair.cc:451] Application timeout caused pair closure", True),
        ("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 3000ms for recv", True),
        ("[c10d] connect: No route to host", True),
        ("writev [10.0.0.2]:4711: Network is unreachable", True),
        ("readv: Software caused connection abort", True),
        ("Socket Timeout", True),
        ("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown?", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
        ("CUDA out of memory", False),
    ],
)
def test_a_peer_that_ended_is_told_from_a_bug(message: str, gone: bool) -> None:
    assert peer_gone(RuntimeError(message)) == gone
