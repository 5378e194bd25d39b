"""Processes of a job come together at a store: all of them within a time, or a sentence says who has not.

Every process but the first says hello to it under a number of its own, is answered with the number of the
first, and confirms with its host. What an earlier attempt has left in a store that outlives it, as torch's
elastic agent keeps one, is thereby never taken for somebody who has come.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from distrib.errors import InputError, KetosError, PeerLost, RunError, TimeoutReached
from distrib.runtime.meeting_point import MeetingPoint
from distrib.runtime.topology import Topology

_POLL_SECONDS: Final = 0.1
_NAME_SECONDS: Final = 15.0
"""How long a name may take to be known: those of new containers come late."""

_GRACE_SECONDS: Final = 1.0
"""How much longer process 0 stays to tell the others who is missing, and they to hear it."""

_SHAKE_SECONDS: Final = 30.0
"""How long a store that accepts a connection may take to answer."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Processes that have come: the store they share, for this meeting alone, and their hosts by rank."""

    store: Store
    hosts: tuple[str, ...]


def meet(topology: Topology, point: MeetingPoint, *, timeout: float, host: str | None = None) -> Meeting:
    """Wait at most ``timeout`` seconds for all processes of the job.

    Raises:
        InputError: the port is another program's, or the address is none.
        TimeoutReached: some have not come; names them.
        PeerLost: process 0 came and has gone.
        RunError: another job meets there.
    """
    deadline = time.monotonic() + timeout
    host = host or socket.gethostname()
    try:
        store = _store(topology, point, deadline=deadline, timeout=timeout, host=host)
        if not point.hosted:
            _refuse_other_job(store, topology, point)
        arrival = _Arrival(store, topology, point, timeout=timeout, deadline=deadline, host=host)
        return arrival.first() if topology.first else arrival.other()
    except RuntimeError as error:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutReached(_silent(topology, point, timeout)) from error
        raise PeerLost(
            f"Process {topology.rank} of {topology.world_size} met the others at {point}, and lost the "
            "connection to process 0 before all had come; its message or its launcher says why."
        ) from error


class _Arrival:
    """One process coming to the store."""

    def __init__(
        self,
        store: Store,
        topology: Topology,
        point: MeetingPoint,
        *,
        timeout: float,
        deadline: float,
        host: str,
    ) -> None:
        self._store = PrefixStore("ketos", store)
        self._topology, self._point = topology, point
        self._timeout, self._deadline, self._host = timeout, deadline, host
        self._number = secrets.token_hex(8)

    def first(self) -> Meeting:
        """Answer the others until all have confirmed, then tell all who has come."""
        here = {0: self._host}
        answered: dict[int, bytes] = {}
        while len(here) < self._topology.world_size:
            for rank in range(1, self._topology.world_size):
                if rank not in here:
                    self._answer(rank, here, answered)
            if len(here) < self._topology.world_size:
                self._wait_or_leave(here)
        self._store.set(f"go/{self._number}", json.dumps([here[rank] for rank in sorted(here)]))
        return self._meeting(self._number, [here[rank] for rank in sorted(here)])

    def _answer(self, rank: int, here: dict[int, str], answered: dict[int, bytes]) -> None:
        confirmed = f"here/{self._number}/{rank}"
        if self._store.check([confirmed]):
            here[rank] = self._store.get(confirmed).decode(errors="replace")
        elif self._store.check([f"hello/{rank}"]):
            number = self._store.get(f"hello/{rank}")
            if answered.get(rank) != number:
                answered[rank] = number
                self._store.set(f"answer/{number.decode(errors='replace')}", self._number)

    def _wait_or_leave(self, here: Mapping[int, str]) -> None:
        if time.monotonic() < self._deadline:
            time.sleep(_POLL_SECONDS)
            return
        sentence = self._missing(here)
        self._store.set(f"late/{self._number}", sentence)
        # The store goes with this process, and the others are to read that.
        time.sleep(_GRACE_SECONDS)
        raise TimeoutReached(sentence)

    def other(self) -> Meeting:
        """Say hello, confirm the answer, and wait for the rest."""
        self._store.set(f"hello/{self._topology.rank}", self._number)
        answer, first = f"answer/{self._number}", ""
        while True:
            if self._store.check([answer]):
                # Process 0 may have been started anew since it answered.
                told = self._store.get(answer).decode(errors="replace")
                if told != first:
                    first = told
                    self._store.set(f"here/{first}/{self._topology.rank}", self._host)
            if first and self._store.check([f"go/{first}"]):
                return self._meeting(first, json.loads(self._store.get(f"go/{first}")))
            if first and self._store.check([f"late/{first}"]):
                raise TimeoutReached(self._store.get(f"late/{first}").decode(errors="replace"))
            if time.monotonic() > self._deadline + _GRACE_SECONDS:
                if not first:
                    raise TimeoutReached(_silent(self._topology, self._point, self._timeout))
                raise TimeoutReached(self._missing(self._here(first)))
            time.sleep(_POLL_SECONDS)

    def _here(self, first: str) -> Mapping[int, str]:
        """Who is known to have come."""
        keys = {rank: f"here/{first}/{rank}" for rank in range(1, self._topology.world_size)}
        found = {rank: key for rank, key in keys.items() if self._store.check([key])}
        there = {rank: self._store.get(key).decode(errors="replace") for rank, key in found.items()}
        return {0: self._point.host, **there}

    def _missing(self, here: Mapping[int, str]) -> str:
        return missing_sentence(here, self._topology.world_size, self._point, self._timeout)

    def _meeting(self, number: str, names: Sequence[str]) -> Meeting:
        return Meeting(store=PrefixStore(f"group/{number}", self._store), hosts=tuple(names))


def missing_sentence(here: Mapping[int, str], world_size: int, point: MeetingPoint, seconds: float) -> str:
    """Which processes have not come, and where those are that have: ``here`` has their hosts by rank."""
    missing = [rank for rank in range(world_size) if rank not in here]
    by_host: dict[str, list[int]] = {}
    for rank, host in sorted(here.items()):
        by_host.setdefault(host, []).append(rank)
    there = "; ".join(f"{rank_list(ranks)} on {host}" for host, ranks in by_host.items())
    who = f"Process {missing[0]}" if len(missing) == 1 else f"Processes {rank_list(missing)}"
    has, log = ("has", "its log") if len(missing) == 1 else ("have", "their logs")
    return (
        f"{who} of {world_size} {has} not come to {point} within {seconds:.0f} s ({there} came); look at "
        f"{log} and at the network between the nodes, or wait longer with --rendezvous-timeout."
    )


def rank_list(ranks: Sequence[int], most: int = 10) -> str:
    """``0-3, 7 and 12`` in short: runs of ranks in ascending order, at most ``most`` of them."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    texts = [str(one) if one == last else f"{one}-{last}" for one, last in runs]
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def _store(topology: Topology, point: MeetingPoint, *, deadline: float, timeout: float, host: str) -> Store:
    if topology.first and not point.hosted:
        _refuse_taken_port(point, host)
        return _shaken(topology, point, "127.0.0.1", serves=True)
    _reach(topology, point, deadline=deadline, timeout=timeout)
    return _shaken(topology, point, point.host, serves=False)


def _refuse_taken_port(point: MeetingPoint, host: str) -> None:
    """Raise InputError where this process may not listen; torch would say so on many lines."""
    with closing(socket.socket()) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", point.port))
            trial.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"MASTER_PORT {point.port} on {host} is in use by another program; set MASTER_PORT to a "
                    "free port, or end the job that was left there."
                ) from error
            raise InputError(
                f"MASTER_PORT {point.port} on {host} cannot be used ({error.strerror}); set MASTER_PORT to a "
                "free port from 1024 to 65535."
            ) from error


def _reach(topology: Topology, point: MeetingPoint, *, deadline: float, timeout: float) -> None:
    """Return once somebody listens at the meeting point: torch would try with a message each time."""
    unknown_until = min(deadline, time.monotonic() + _NAME_SECONDS)
    while True:
        left = max(deadline - time.monotonic(), _POLL_SECONDS)
        try:
            with socket.create_connection((point.host, point.port), timeout=min(left, 5.0)):
                return
        except (socket.gaierror, UnicodeError) as error:
            if time.monotonic() > unknown_until:
                raise InputError(
                    f"Process {topology.rank} of {topology.world_size} could not join the others: "
                    f"MASTER_ADDR={point.host} is no host that this machine knows; set it to an address of "
                    "the machine of process 0."
                ) from error
        except OSError as error:
            if time.monotonic() > deadline:
                reason = (error.strerror or str(error) or "no answer").lower()
                raise TimeoutReached(_silent(topology, point, timeout, reason)) from error
        time.sleep(_POLL_SECONDS)


def _silent(topology: Topology, point: MeetingPoint, timeout: float, reason: str = "no answer") -> str:
    return (
        f"Process 0 of {topology.world_size} has not come to {point} within {timeout:.0f} s, as process "
        f"{topology.rank} finds ({reason}); look at the log of process 0, at MASTER_ADDR and MASTER_PORT, "
        "and at the network between the nodes."
    )


def _shaken(topology: Topology, point: MeetingPoint, host: str, *, serves: bool) -> Store:
    """The store at the meeting point. Raises InputError where something else answers there, or nothing."""
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(
                TCPStore(
                    host,
                    point.port,
                    topology.world_size,
                    serves,
                    timeout=timedelta(seconds=_SHAKE_SECONDS),
                    wait_for_workers=False,
                )
            )
        except (RuntimeError, ValueError) as error:
            found.append(error)

    # Torch waits without end for a program that accepts connections and says nothing.
    thread = threading.Thread(target=connect, daemon=True, name="rendezvous")
    thread.start()
    thread.join(_SHAKE_SECONDS + 5)
    if found and isinstance(found[0], Store):
        return found[0]
    raise InputError(
        f"What answers at {point} (MASTER_ADDR:MASTER_PORT) is no process of this job; set MASTER_PORT to a "
        "port that no other program uses on the host of process 0."
    ) from (found[0] if found else None)


def _refuse_other_job(store: Store, topology: Topology, point: MeetingPoint) -> None:
    """Raise RunError where the store is that of another job, with the same port by accident."""
    if topology.first:
        store.set("ketos/job", point.job)
        return
    job = store.get("ketos/job").decode(errors="replace")
    if job != point.job:
        refused: KetosError = RunError(
            f"At {point} meets another job ({job}) than that of process {topology.rank} ({point.job}); give "
            "each job a MASTER_PORT of its own."
        )
        raise refused
