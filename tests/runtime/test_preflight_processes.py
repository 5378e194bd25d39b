"""The preflight of two real processes, one of which has something that is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ..training.jobs import two_of

WORKER = """
import dataclasses, json, os, sys, time
from pathlib import Path
import torch
from distrib.errors import KetosError
from distrib.runtime.preflight.all_reduce import check_sum, measure
from distrib.runtime.preflight.machines import clock_skews, this_machine
from distrib.runtime.preflight.shared_directory import check_shared
from distrib.runtime.preflight.limits import HandedOver
from distrib.runtime.preflight.stages import Needs, Preflight
from distrib.runtime.processes import joined
from distrib.runtime.topology import topology_of

scratch = Path(sys.argv[1])
told = {}
HOSTS = ["node1", "node2"]
CPU = torch.device("cpu")

def outcome(name, action):
    began = time.monotonic()
    try:
        told[name] = action()
    except KetosError as error:
        told[name] = [type(error).__name__, error.exit_code, str(error)]
    told[name + " seconds"] = time.monotonic() - began

def stages(directory, *, workers=0, machine=None, clock=time.time, needs=None):
    warnings = []
    preflight = Preflight(processes, warn=warnings.append)
    machine = machine or {}
    here = this_machine(deepspeed=False)
    versions = {**here.versions, **machine.get("versions", {})}
    here = dataclasses.replace(here, host=HOSTS[rank], versions=versions)
    preflight.machines(workers=workers, machine=here, clock=clock)
    preflight.devices("cpu")
    preflight.run_directory(directory)
    needs = needs or Needs(strategy="ddp", optimizer_values=2, kept=3, handed_over=None)
    preflight.step(torch.nn.Linear(1000, 1000), directory, needs, device="cpu")
    return [warnings, dict(preflight.facts), preflight.summary]

def sent_wrong(tensor):
    if rank == 1:
        tensor[64 + 8] += 1  # in the place of its own
    return processes.sum_tensor(tensor)

def received_wrong(tensor):
    processes.sum_tensor(tensor)
    if rank == 1:
        tensor[3] += 0.5
    return tensor

def late(tensor):
    if rank == 1:
        time.sleep(0.05)
    return processes.sum_tensor(tensor)

with joined(topology_of(os.environ), device="cpu") as processes:
    rank = processes.topology.rank
    mine = [scratch / "shared", scratch / "other"][rank]
    outcome("good", lambda: stages(scratch / "shared"))
    outcome("torch", lambda: stages(mine, machine={"versions": {"torch": "2.0.0"}} if rank else None))
    outcome("clock", lambda: stages(scratch / "shared", clock=lambda: time.time() - 60 * rank))
    outcome("other directory", lambda: check_shared(processes, mine, HOSTS, patience=0.3))
    outcome("no directory", lambda: check_shared(
        processes, [mine, scratch / "missing"][rank], HOSTS, patience=0.3))
    outcome("sent", lambda: check_sum(processes, sent_wrong, HOSTS, device=CPU))
    outcome("received", lambda: check_sum(processes, received_wrong, HOSTS, device=CPU))
    outcome("right", lambda: check_sum(processes, processes.sum_tensor, HOSTS, device=CPU))
    outcome("slow", lambda: dataclasses.asdict(measure(processes, late, device=CPU, most=1 << 30)))
    short = HandedOver(workers=2, least=[0, 1 << 50][rank], most=1 << 50)
    outcome("shared memory", lambda: stages(scratch / "shared", needs=Needs(
        strategy="ddp", optimizer_values=2, kept=3, handed_over=short)))
    full = Needs(strategy="ddp", optimizer_values=1 << 40, kept=3, handed_over=None)
    outcome("disk", lambda: stages(scratch / "shared", needs=full))
    if os.getuid() == 0:
        shared = scratch / "shared"
        if rank == 1:
            os.chdir(shared)  # whose parents are closed to other users
            os.setgroups([])
            os.setuid(65534)
        here = [shared, Path(".")][rank]
        outcome("unwritable", lambda: check_shared(processes, here, HOSTS, patience=0.3))
        outcome("unreadable", lambda: check_shared(processes, shared, HOSTS, patience=0.3))
    print(json.dumps(told), flush=True)
"""

Told = dict[str, Any]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("preflight")
    for name in ("shared", "other"):
        (directory / name).mkdir()
    return directory


@pytest.fixture(scope="module")
def told(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Told]:
    """What happened in each case at rank zero and at rank one, each on a node of its own."""
    nodes = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    with two_of(WORKER, tmp_path_factory.mktemp("program"), scratch, variables=nodes) as jobs:
        printed = [(job.wait(60), job.output, job.stderr)[1:] for job in jobs]
    for out, err in printed:
        assert out, err
    first, second = (json.loads(out) for out, _ in printed)
    return first, second


def refused(told: tuple[Told, Told], case: str) -> tuple[str, int, str]:
    """The error of a case at rank zero, after which the other has left in silence with the same code."""
    kind, code, sentence = told[0][case]
    assert told[1][case][:2] == ["PeerError", code]
    return kind, code, sentence


def test_all_is_well(told: tuple[Told, Told], scratch: Path) -> None:
    warnings, facts, summary = told[0]["good"]
    assert warnings == [] or "open" in warnings[0] or "free" in warnings[0]
    assert facts["hosts"] == {"node1": 1, "node2": 1}
    assert facts["all_reduce"]["bytes_per_step"] == 1_001_000 * 4
    assert facts["all_reduce"]["bus_bytes_per_second"] > 0
    assert 0 <= facts["shared_after"] < 5
    assert summary.startswith("2 processes on 2 nodes answered in ")
    assert "a step exchanges 4.0 MB (" in summary
    assert facts["seconds"] < 3
    # Only rank zero speaks.
    assert told[1]["good"][0] == []


def test_another_version_is_refused_naming_both_hosts(told: tuple[Told, Told]) -> None:
    kind, code, sentence = refused(told, "torch")
    assert (kind, code) == ("InputError", 2)
    assert "different versions of torch: " in sentence
    assert "on node1, 2.0.0 on node2; install the same" in sentence


def test_a_clock_that_is_off_is_warned_of(told: tuple[Told, Told]) -> None:
    warnings, facts, _ = told[0]["clock"]
    assert any("the clock of node2 is 60 s behind that of process 0 on node1" in each for each in warnings)
    assert -60.1 < facts["clock_skew"] < -59
    assert facts["warnings"] == warnings


@pytest.mark.parametrize("case", ["other directory", "no directory"])
def test_a_directory_that_is_not_shared_is_refused(told: tuple[Told, Told], case: str, scratch: Path) -> None:
    kind, code, sentence = refused(told, case)
    assert (kind, code) == ("InputError", 2)
    assert sentence.startswith(
        f"{scratch / 'shared'}: process 1 on node2 does not find what process 0 on node1 wrote there "
        "(No such file or directory); give"
    )
    assert told[0][f"{case} seconds"] < 2


@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser can become another user")
def test_a_directory_that_only_the_first_may_use_is_refused(told: tuple[Told, Told]) -> None:
    kind, _, sentence = refused(told, "unwritable")
    assert kind == "InputError"
    assert "process 1 on node2 may not write there (Permission denied)" in sentence
    kind, _, sentence = refused(told, "unreadable")
    assert kind == "InputError"
    assert "process 1 on node2 does not find what process 0 on node1 wrote there (Permission den" in sentence


def test_nothing_stays_in_a_run_directory(told: tuple[Told, Told], scratch: Path) -> None:
    assert told
    assert list((scratch / "shared").iterdir()) == []
    assert list((scratch / "other").iterdir()) == []


@pytest.mark.parametrize("case", ["sent", "received"])
def test_a_wrong_sum_names_the_process_that_is_at_fault(told: tuple[Told, Told], case: str) -> None:
    kind, code, sentence = refused(told, case)
    assert (kind, code) == ("RunError", 1)
    assert "came out wrong at process 1 on node2; " in sentence
    assert "node1" not in sentence
    assert told[0]["right"] is told[1]["right"] is None


def test_a_slow_network_is_measured_in_little_time(told: tuple[Told, Told]) -> None:
    assert told[0]["slow"] == told[1]["slow"]
    assert told[0]["slow"]["bytes"] <= 4 << 20
    assert told[0]["slow"]["seconds"] >= 0.05
    assert told[0]["slow seconds"] < 2


def test_too_little_shared_memory_on_one_node_is_refused(told: tuple[Told, Told]) -> None:
    kind, code, sentence = refused(told, "shared memory")
    assert (kind, code) == ("InputError", 2)
    assert sentence.startswith("node2 has ")
    assert "--shm-size" in sentence


def test_a_disk_without_room_for_two_checkpoints_is_refused(told: tuple[Told, Told]) -> None:
    kind, code, sentence = refused(told, "disk")
    assert (kind, code) == ("InputError", 2)
    assert "of which two must fit" in sentence
