"""Processes come together, or a sentence says which of them has not come and where."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch._C._distributed_c10d import PrefixStore, TCPStore

from distrib.errors import InputError, KetosError, RunError, TimeoutReached
from distrib.runtime import rendezvous
from distrib.runtime.hostlist import hosts
from distrib.runtime.meeting_point import MeetingPoint, address_of, meeting_point
from distrib.runtime.rendezvous import meet, missing_sentence, rank_list
from distrib.runtime.topology import Topology

SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NODELIST": "n[3-9]",
    "SLURM_STEP_NODELIST": "n[4-5]",
}
TWO = Topology(rank=1, world_size=2)


@contextmanager
def taken() -> Iterator[int]:
    """A port of a program that accepts connections and says nothing."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def free_point(**more: Any) -> MeetingPoint:
    with taken() as port:
        return MeetingPoint(host="127.0.0.1", port=port, job="a", **more)


def come(point: MeetingPoint, *ranks: int, world_size: int, timeout: float = 20) -> dict[int, Any]:
    """What becomes of these ranks that come at once: their meeting, or their error."""
    found: dict[int, Any] = {}

    def one(rank: int) -> None:
        topology = Topology(rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size)
        try:
            found[rank] = meet(topology, point, timeout=timeout, host=f"n{rank}")
        except KetosError as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return found


def test_all_who_come_know_of_each_other_and_share_a_store() -> None:
    found = come(free_point(), 0, 1, 2, world_size=3)
    assert [found[rank].hosts for rank in range(3)] == [("n0", "n1", "n2")] * 3
    found[1].store.set("key", "of 1")
    assert found[0].store.get("key") == b"of 1"


def test_who_has_not_come_is_named_by_all_who_have() -> None:
    point = free_point()
    found = come(point, 0, 1, world_size=4, timeout=1)
    for rank in (0, 1):
        assert isinstance(found[rank], TimeoutReached), found
        assert str(found[rank]).startswith(f"Processes 2-3 of 4 have not come to {point} within 1 s")
        assert "1 on n1 came" in str(found[rank])


def test_without_the_first_process_the_others_say_where_it_is_missed() -> None:
    point = free_point()
    found = come(point, 1, world_size=2, timeout=0.5)
    assert isinstance(found[1], TimeoutReached)
    assert str(found[1]).startswith(f"Process 0 of 2 has not come to {point} within")
    assert "MASTER_ADDR" in str(found[1])


def test_a_port_in_use_is_refused_at_once() -> None:
    with taken() as port:
        found = come(MeetingPoint(host="127.0.0.1", port=port), 0, world_size=2)
    assert isinstance(found[0], InputError)
    assert f"MASTER_PORT {port} on n0 is in use by another program" in str(found[0])


def test_a_program_that_says_nothing_does_not_hold_up_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself waits for it without end."""
    monkeypatch.setattr(rendezvous, "_SHAKE_SECONDS", -4.5)
    with taken() as port:
        found = come(MeetingPoint(host="127.0.0.1", port=port), 1, world_size=2)
    assert isinstance(found[1], InputError)
    assert "is no process of this job" in str(found[1])


def test_a_name_nobody_knows_is_named() -> None:
    found = come(MeetingPoint(host="no-such-host.invalid", port=9), 1, world_size=2, timeout=0.3)
    assert isinstance(found[1], InputError)
    assert "MASTER_ADDR=no-such-host.invalid" in str(found[1])


def test_a_process_of_another_job_is_sent_away() -> None:
    """Two jobs in one group would train on each other's gradients."""
    point = free_point()
    first = threading.Thread(target=come, args=(point, 0), kwargs={"world_size": 2, "timeout": 2})
    first.start()
    found = come(replace(point, job="b"), 1, world_size=2, timeout=2)
    first.join()
    assert isinstance(found[1], RunError)
    assert "meets another job (a)" in str(found[1])


def test_what_an_earlier_attempt_left_in_a_store_is_nobody() -> None:
    """Torch's elastic agent keeps a store over restarts; half of a group would begin without the rest."""
    point = free_point(hosted=True)
    store = TCPStore("127.0.0.1", point.port, 2, True, wait_for_workers=False)
    assert come(point, 0, 1, world_size=2)[0].hosts == ("n0", "n1")
    alone = come(point, 0, world_size=2, timeout=0.5)
    assert isinstance(alone[0], TimeoutReached)
    again = come(point, 0, 1, world_size=2)
    assert again[0].hosts == again[1].hosts == ("n0", "n1")
    del store


def test_a_first_process_that_is_started_anew_is_met_again() -> None:
    """It was killed after it had answered; the others have not noticed."""
    point = free_point(hosted=True)
    server = TCPStore("127.0.0.1", point.port, 3, True, wait_for_workers=False)
    store = PrefixStore("ketos", server)
    found: dict[int, Any] = {}
    early = threading.Thread(target=lambda: found.update(come(point, 1, world_size=3)))
    early.start()
    store.wait(["hello/1"], timedelta(seconds=20))
    store.set(f"answer/{store.get('hello/1').decode()}", "dead")
    store.wait(["here/dead/1"], timedelta(seconds=20))
    found |= come(point, 0, 2, world_size=3)
    early.join()
    assert [found[rank].hosts for rank in range(3)] == [("n0", "n1", "n2")] * 3


def test_one_process_that_is_missing_is_named_alone() -> None:
    point = MeetingPoint(host="n1", port=15012)
    assert missing_sentence({0: "n1", 1: "n1", 2: "n2"}, 4, point, 300) == (
        "Process 3 of 4 has not come to n1:15012 within 300 s (0-1 on n1; 2 on n2 came); look at its log and "
        "at the network between the nodes, or wait longer with --rendezvous-timeout."
    )


@given(st.sets(st.integers(0, 40)))
def test_a_list_of_ranks_holds_them_all(ranks: set[int]) -> None:
    found = set()
    for part in rank_list(sorted(ranks), most=100).split(", "):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1)) if part else set()
    assert found == ranks


def test_under_srun_the_first_host_of_the_step_is_the_place() -> None:
    found = meeting_point(SRUN, TWO, resolve=lambda name: f"address of {name}")
    assert found.host == "address of n4"
    assert 1024 < found.port < 32768
    assert not found.hosted


@pytest.mark.parametrize("other", [{"SLURM_JOB_ID": "78"}, {"SLURM_STEP_ID": "1"}], ids=["job", "step"])
def test_two_jobs_on_a_node_meet_at_ports_of_their_own(other: dict[str, str]) -> None:
    one, another = (meeting_point({**SRUN, **more}, TWO, resolve=str) for more in ({}, other))
    assert one.port != another.port
    assert one.job != another.job


def test_all_tasks_of_a_step_go_to_the_same_place() -> None:
    places = {meeting_point({**SRUN, "SLURM_PROCID": rank}, TWO, resolve=str) for rank in "01"}
    assert len(places) == 1


def test_what_is_set_wins() -> None:
    given_place = {"MASTER_ADDR": "n9", "MASTER_PORT": "29500"}
    found = meeting_point({**SRUN, **given_place}, TWO, resolve=str)
    assert (found.host, found.port) == ("n9", 29500)
    assert meeting_point({**SRUN, "MASTER_ADDR": "n9"}, TWO).host == "n9"


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1", "٣"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(InputError, match="MASTER_PORT="):
        meeting_point({"MASTER_ADDR": "n1", "MASTER_PORT": port}, TWO)


@pytest.mark.parametrize("environ", [{}, {"MASTER_ADDR": "n1"}, {k: SRUN[k] for k in ("SLURM_JOB_ID",)}])
def test_nowhere_to_meet_is_a_sentence(environ: dict[str, str]) -> None:
    with pytest.raises(InputError, match="is not set; start the job with ketos launch, torchrun or srun"):
        meeting_point(environ, TWO)


def test_a_node_whose_name_is_not_known_is_looked_up_with_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\n[ "$3" = n1.invalid ] && echo "NodeName=n1 NodeAddr=10.9.8.7 NodeHostName=x"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert address_of("n1.invalid") == "10.9.8.7"
    assert address_of("localhost") == "localhost"
    assert address_of("n2.invalid") == "n2.invalid"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("n1", ["n1"]),
        ("n[1-3,07],gpu-a[01-02]x", ["n1", "n2", "n3", "n07", "gpu-a01x", "gpu-a02x"]),
        ("n[09-11]", ["n09", "n10", "n11"]),
        ("r[1-2]n[3-4].site,login", ["r1n3.site", "r1n4.site", "r2n3.site", "r2n4.site", "login"]),
    ],
)
def test_hosts_as_slurm_lists_them(text: str, wanted: list[str]) -> None:
    assert list(hosts(text)) == wanted


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True), st.integers(0, 200), st.integers(0, 20)
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
)
def test_a_list_of_hosts_is_what_it_was_made_of(parts: list[tuple[str, int, int]], width: int) -> None:
    text = ",".join(f"{name}[{first:0{width}d}-{first + more:0{width}d}]" for name, first, more in parts)
    wanted = [
        f"{name}{number:0{width}d}"
        for name, first, more in parts
        for number in range(first, first + more + 1)
    ]
    assert list(hosts(text)) == wanted


def test_the_first_host_of_very_many_comes_at_once() -> None:
    began = time.monotonic()
    assert next(hosts("n[1-999999999999]")) == "n1"
    assert time.monotonic() - began < 1


@given(st.text(alphabet="n1-,[]0 a", max_size=12))
def test_any_text_is_a_list_of_hosts_or_a_sentence(text: str) -> None:
    try:
        first = next(hosts(text))
    except InputError:
        return
    assert first
    assert not set(first) & set("[], ")


@pytest.mark.parametrize("text", ["", "n[1-", "n[3-1]", "n[]", "n[x]", "n]1", "a,,b", "n[1]]", "n 1"])
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no list of hosts"):
        list(hosts(text))
