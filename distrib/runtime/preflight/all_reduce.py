"""The sum over all processes: that it is right, on the device that trains, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Final

import torch
from torch import Tensor

from distrib.errors import KetosError, RunError, TimeoutReached
from distrib.runtime.preflight.wording import listing, place
from distrib.runtime.processes import Processes

Sum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes, in place."""

MEGABYTE: Final = 1 << 20
_MOST_BYTES = 64 * MEGABYTE
_SECONDS = 0.5
"""For the measurement; a slow network is measured with fewer bytes."""
_REPEATS = 3
_MIXED, _OWN = 64, 8
_ANSWER_SECONDS = 120.0
"""For the first sum between GPUs, before which NCCL connects them: minutes on the largest clusters."""


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Seconds that the slowest process took for summing so many bytes over ``world_size`` processes."""

    bytes: int
    seconds: float
    world_size: int

    @property
    def bus(self) -> float:
        """Bytes a second that each link carries: 2(n-1)/n of the bytes summed, over the seconds.

        The bus bandwidth of nccl-tests (PERFORMANCE.md), which does not depend on the number of processes and
        can be compared with what the hardware promises.
        """
        return exchanged(self.bytes, self.world_size) / self.seconds


def exchanged(count: float, world_size: int) -> float:
    """Bytes that each process sends and receives when ``count`` bytes are summed over all, in a ring."""
    return count * 2 * (world_size - 1) / world_size


def exchanged_a_step(trained: int, world_size: int, strategy: str) -> float:
    """Bytes that each process sends and receives a step for ``trained`` parameters in float32.

    Gradients are summed under DDP; ZeRO-1 and 2 scatter them and gather weights, as many bytes. ZeRO-3 and
    FSDP gather weights twice, 1.5 times as many (Rajbhandari et al. 2020, section 7), and again for every
    further micro-batch.
    """
    return exchanged(4 * trained, world_size) * (1.5 if strategy in ("deepspeed_stage_3", "fsdp") else 1)


def check_sum(processes: Processes, add: Sum, hosts: Sequence[str], *, device: torch.device) -> None:
    """Raise RunError, naming who, where a known sum comes out wrong; TimeoutReached where none comes at all.

    Every process has values that all have, and values in a place of its own, by which the one that sent
    something else is told from one that received it. Called by all processes.
    """
    rank, world_size = processes.topology.rank, processes.topology.world_size
    mine, expected = _contribution(rank, world_size), _expected(world_size)

    def summed() -> Tensor:
        return add(mine.to(device)).cpu()

    found = processes.agree(lambda: _first_contact(summed, device, place(rank, hosts)))
    wrong = (found != expected).nonzero().flatten().tolist()
    sent = sorted({(index - _MIXED) // _OWN for index in wrong if index >= _MIXED})
    verdicts = processes.gather((bool(wrong), sent))
    received = [each for each, (bad, _) in enumerate(verdicts) if bad]
    if not received:
        return
    # What all received alike was sent so.
    alike = len(received) == world_size and all(theirs == verdicts[0][1] for _, theirs in verdicts)
    culprits = verdicts[0][1] if alike and verdicts[0][1] else received
    places = listing([place(each, hosts) for each in culprits])
    processes.stop(
        RunError(
            f"A sum over all processes came out wrong at {places}; the memory, GPU or network card there is "
            "at fault, or its driver: leave that node out (--exclude) and have it examined."
        )
    )


def measure(processes: Processes, add: Sum, *, device: torch.device, most: int) -> Bandwidth:
    """Time the sum of 1 to 64 MB, not many more than ``most`` bytes. Called by all processes.

    Takes about half a second at most, after ``check_sum`` has made the connections.
    """
    first = _timed(processes, add, device, MEGABYTE)
    fits = int(MEGABYTE * _SECONDS / ((_REPEATS + 1) * max(first.seconds, 1e-6)))
    count = min(most, fits, _MOST_BYTES)
    return first if count < 2 * MEGABYTE else _timed(processes, add, device, count)


def _timed(processes: Processes, add: Sum, device: torch.device, count: int) -> Bandwidth:
    values = torch.zeros(count // 4, device=device)
    add(values)
    _synchronize(device)
    processes.sum([0.0])  # so that nobody measures how late another is
    began = time.perf_counter()
    for _ in range(_REPEATS):
        add(values)
    _synchronize(device)
    seconds = max(processes.gather(time.perf_counter() - began)) / _REPEATS
    return Bandwidth(bytes=4 * values.numel(), seconds=seconds, world_size=processes.topology.world_size)


def _contribution(rank: int, world_size: int) -> Tensor:
    """Small whole numbers, whose sums are exact in float32: of all ranks mixed, then a place for each."""
    mixed = (torch.arange(_MIXED) * 31 + rank * 17) % 97
    own = torch.zeros(world_size, _OWN)
    own[rank] = rank % 97 + 1
    return torch.cat([mixed.float(), own.flatten()])


def _expected(world_size: int) -> Tensor:
    ranks = torch.arange(world_size)
    mixed = ((torch.arange(_MIXED)[:, None] * 31 + ranks * 17) % 97).sum(dim=1)
    own = (ranks % 97 + 1).repeat_interleave(_OWN)
    return torch.cat([mixed, own]).float()


def _first_contact(summed: Callable[[], Tensor], device: torch.device, where: str) -> Tensor:
    """The first sum on ``device``. Between GPUs that cannot reach each other NCCL may wait for ever."""
    if device.type != "cuda":
        return summed()
    results: list[Tensor | KetosError] = []

    def contact() -> None:
        torch.cuda.set_device(device)
        try:
            results.append(summed())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            results.append(RunError(f"The GPU of {where} cannot speak to the others ({reason}); {_REMEDY}."))

    # The collectives on the CPU go other ways, by which the processes can agree on the failure of this one.
    thread = Thread(target=contact, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if not results:
        raise TimeoutReached(
            f"The GPU of {where} got no answer from the others in {_ANSWER_SECONDS:.0f} s; {_REMEDY}."
        )
    if isinstance(results[0], KetosError):
        raise results[0]
    return results[0]


_REMEDY: Final = (
    "let NCCL say why (--env NCCL_DEBUG=INFO), and name the network between the nodes (--env "
    "NCCL_SOCKET_IFNAME=eth0) or give the container shared memory (--shm-size)"
)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
