"""The processes of a job talking to each other: agreement, broadcast, sums. One process talks to nobody."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from distrib.errors import KetosError, PeerError, PeerLost, RunError, TimeoutReached
from distrib.runtime.long_wait import Patience, at_work, wait_for_first
from distrib.runtime.meeting_point import meeting_point
from distrib.runtime.phases import Phases
from distrib.runtime.rendezvous import Meeting, meet
from distrib.runtime.topology import Topology

Result = TypeVar("Result")

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for a process that does not come."""

RENDEZVOUS_SECONDS = 300.0

_TIMED_OUT = re.compile(r"timed? ?out", re.I)

_PEER_GONE = re.compile(
    r"closed by peer|peer closed|was likely closed|pair closure|Connection (reset|refused|abort)|Broken pipe"
    r"|recvBytes|Timed out|Socket Timeout|No route to host|(Host|Network) is (down|unreach)"
    r"|endpoint is not connected|NCCL",
    re.I,
)
"""What gloo, NCCL and the store say where another process, its machine or the way to it is gone."""


class Processes:
    """The processes of a job as one of them sees them. Every method is called by all, in the same order.

    ``phases`` hears of each exchange, and of what else the process says it does. ``hosts`` are the machines
    of all, by rank, where they have met, and ``store`` is what they met at.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        hosts: Sequence[str] = (),
        phases: Phases | None = None,
        store: Store | None = None,
    ) -> None:
        self.topology = topology
        self.hosts = tuple(hosts)
        self.phases = phases or Phases()
        self._store = store
        self._waits = 0

    @property
    def several(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.topology.world_size > 1

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in double precision."""
        if not self.several:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        with self.phases.exchange():
            dist.all_reduce(total)
        return cast("list[float]", total.tolist())

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` summed over all processes, in place, on its device."""
        if self.several:
            with self.phases.exchange():
                dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Result) -> list[Result]:
        """Every process's item, by rank, at every process. Items are pickled."""
        if not self.several:
            return [item]
        items: list[Any] = [None] * self.topology.world_size
        with self.phases.exchange():
            dist.all_gather_object(items, item)
        return items

    def agree(self, function: Callable[[], Result]) -> Result:
        """What ``function`` returns here, if it failed nowhere for a reason that a user can mend.

        Where it did, the lowest such rank raises its own error and all others a PeerError, so that one
        sentence is printed and nobody waits for a process that has ended.
        """
        result: Any = None
        error: KetosError | OSError | MemoryError | None = None
        try:
            result = function()
        except (KetosError, OSError, MemoryError) as raised:
            error = raised
        codes = self.gather(None if error is None else getattr(error, "exit_code", 1))
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if not failed:
            return cast(Result, result)
        self.part()
        if error is not None and failed[0] == self.topology.rank:
            raise error
        raise PeerError(failed[0], int(codes[failed[0]] or 1)) from None

    def stop(self, error: KetosError) -> NoReturn:
        """End all processes, which agree on ``error``: rank zero raises it, the others are silent."""
        self.part()
        if self.topology.first:
            raise error
        raise PeerError(0, error.exit_code)

    def part(self) -> None:
        """Return when all processes are about to leave.

        One that closes its connections at once can fail the collective before in the others: gloo tells
        them that it is gone before it hands over what it had sent.
        """
        if self.several:
            with suppress(RuntimeError), self.phases.exchange():
                dist.all_reduce(torch.zeros(1))

    def on_first(self, function: Callable[[], Result]) -> Result:
        """What ``function`` returns at rank zero, which alone calls it, at every process."""
        result = self.agree(lambda: function() if self.topology.first else None)
        if self.several:
            box = [result]
            with self.phases.exchange():
                dist.broadcast_object_list(box, src=0)
            result = box[0]
        return cast(Result, result)

    def after_first(
        self, function: Callable[[], Result], *, doing: str, remedy: str, patience: Patience | None = None
    ) -> Result | None:
        """What ``function`` returns at rank zero, which alone calls it, and None at the others.

        They wait for it however long it takes, as long as rank zero lives. ``doing`` is what it does as in
        "process 0 has been ...", ``remedy`` what to do where that takes too long.

        Raises as ``agree`` does; TimeoutReached, PeerLost where rank zero gives no sign of life.
        """
        self._waits += 1
        key, patience, store = f"first/{self._waits}", patience or Patience(), self._store

        def work() -> Result:
            with at_work(store, key, patience) if store is not None else nullcontext():
                return function()

        with self.phases.within(doing):
            if self.topology.first:
                return self.agree(work)
            if store is not None:
                with self.phases.exchange():
                    wait_for_first(store, key, patience, doing=doing, remedy=remedy)
            return self.agree(lambda: None)

    @contextmanager
    def first_holds(self, context: Callable[[], AbstractContextManager[Result]]) -> Iterator[Result | None]:
        """Hold ``context`` at rank zero around a block of all; what its entry raises ends all of them.

        Gives rank zero what it is, the others None.
        """
        with ExitStack() as stack:
            yield self.agree(lambda: stack.enter_context(context()) if self.topology.first else None)


def peer_gone(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is no longer there."""
    return _PEER_GONE.search(str(error)) is not None


@contextmanager
def joined(
    topology: Topology,
    *,
    device: str,
    group_of_one: bool = False,
    timeout: float = RENDEZVOUS_SECONDS,
    stall_timeout: float = 0.0,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Processes]:
    """Join the processes of the job, for collectives on the CPU and where ``--device`` allows it on GPUs.

    A single process makes a group only where ``group_of_one`` asks for it, as sharded strategies need it.
    All must come within ``timeout`` seconds. Where somebody watches for stalls of ``stall_timeout`` seconds
    during the block, collectives wait for longer than that. ``environ`` says where to meet (None: the
    environment of this process).

    Raises:
        InputError: the meeting point is none, or another program's.
        TimeoutReached: processes have not come, or one has not answered for as long as collectives wait.
        PeerLost: another process has ended.
    """
    if topology.world_size == 1 and not group_of_one:
        yield Processes(topology)
        return
    meeting = _met(topology, timeout, os.environ if environ is None else environ)
    waits = max(TIMEOUT, timedelta(seconds=2 * stall_timeout))
    _make_group(topology, meeting, device=device, timeout=timeout, waits=waits)
    processes = Processes(topology, hosts=meeting.hosts, store=meeting.store)
    began = time.monotonic()
    try:
        yield processes
        processes.part()
    except RuntimeError as error:
        if not peer_gone(error):
            raise
        where = processes.phases.current
        if _TIMED_OUT.search(str(error)) and time.monotonic() - began >= waits.total_seconds():
            raise TimeoutReached(
                f"Process {topology.rank} has waited {waits.total_seconds():.0f} s for the others "
                f"({where.name}); their logs say what they are doing."
            ) from error
        raise PeerLost(
            "Another process of this job has ended or does not answer; its message or its launcher says why."
        ) from error
    # Not after an error: a process that has ended would be waited for.
    dist.destroy_process_group()


def _met(topology: Topology, timeout: float, environ: Mapping[str, str]) -> Meeting:
    if topology.world_size == 1:
        return Meeting(store=HashStore(), hosts=())
    return meet(topology, meeting_point(environ, topology), timeout=timeout)


def _make_group(
    topology: Topology, meeting: Meeting, *, device: str, timeout: float, waits: timedelta
) -> None:
    """Connect those who have met with each other: that they reach the store does not say that they can."""
    cuda = not device.startswith("cpu") and torch.cuda.is_available()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=meeting.store,
            rank=topology.rank,
            world_size=topology.world_size,
            timeout=timedelta(seconds=timeout),
        )
        # Torch has no public name for it.
        dist.distributed_c10d._set_pg_timeout(waits)
    except (RuntimeError, ValueError) as error:
        timed_out = _TIMED_OUT.search(str(error)) is not None
        kind = TimeoutReached if timed_out else PeerLost if peer_gone(RuntimeError(error)) else RunError
        raise kind(
            f"Process {topology.rank} of {topology.world_size} has met the others "
            f"({', '.join(dict.fromkeys(meeting.hosts))}) but cannot connect to all of them "
            f"({str(error).splitlines()[0]}); see that no firewall is between the nodes, and set "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network they share."
        ) from error
