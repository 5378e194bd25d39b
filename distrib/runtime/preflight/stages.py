"""The checks before the first step in their order, and what they found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distrib.errors import InputError
from distrib.runtime.devices import process_device
from distrib.runtime.preflight.all_reduce import Bandwidth, check_sum, exchanged_a_step, measure
from distrib.runtime.preflight.gpus import refuse_devices, this_device
from distrib.runtime.preflight.limits import (
    HandedOver,
    OpenFiles,
    open_files_warning,
    raise_open_files,
    shared_memory_free,
    shared_memory_problem,
)
from distrib.runtime.preflight.machines import (
    Machine,
    clock_skews,
    compare,
    skew_warnings,
    this_machine,
)
from distrib.runtime.preflight.room import check_room, checkpoint_bytes, room_in
from distrib.runtime.preflight.shared_directory import check_shared
from distrib.runtime.preflight.wording import duration
from distrib.runtime.processes import Processes
from distrib.wording import size


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a run will ask of its nodes: ``optimizer_values`` are kept for each parameter, ``kept`` is the
    number of checkpoints, ``handed_over`` what reader processes put into shared memory."""

    strategy: str
    optimizer_values: int
    kept: int
    handed_over: HandedOver | None


class Preflight:
    """The checks of a job, made by all of its processes, stage after stage in the order of the methods.

    Each method raises at all processes for the first thing that would hang or fail later: InputError for what
    a user mends, RunError for hardware. ``warn`` gets at rank zero, once, what may do no harm.
    """

    def __init__(self, processes: Processes, *, warn: Callable[[str], None]) -> None:
        self._processes = processes
        self._warn = warn
        self._hosts: list[str] = []
        self._seconds = 0.0
        self._facts: dict[str, Any] = {}
        self._warnings: list[str] = []
        self._said: list[str] = []

    @property
    def facts(self) -> Mapping[str, Any]:
        """All that was found, in plain types, with ``warnings`` and the ``seconds`` that it took."""
        return {**self._facts, "warnings": list(self._warnings), "seconds": round(self._seconds, 3)}

    @property
    def summary(self) -> str:
        """One line of what was found."""
        return "; ".join(self._said)

    def machines(
        self,
        *,
        deepspeed: bool = False,
        workers: int,
        machine: Machine | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Versions, clocks and the limits of open files, which are raised where they are low.

        ``machine`` is that of this process where it is known already.
        """
        with self._timed():
            processes, topology = self._processes, self._processes.topology
            files = raise_open_files(workers=workers, world_size=topology.world_size)
            told = processes.gather((machine or this_machine(deepspeed=deepspeed), files))
            machines = [each for each, _ in told]
            self._hosts = [each.host for each in machines]
            try:
                warnings = compare(machines)
            except InputError as error:
                processes.stop(error)
            limits: dict[str, OpenFiles] = {
                host: open_files for host, (_, open_files) in zip(self._hosts, told, strict=True)
            }
            warnings += filter(
                None, (open_files_warning(open_files, host) for host, open_files in limits.items())
            )
            skews = clock_skews(processes, clock) if processes.several else [0.0]
            self._tell(warnings + skew_warnings(skews, self._hosts))
            self._facts |= {
                "processes": topology.world_size,
                "nodes": topology.nodes,
                "hosts": dict(Counter(self._hosts)),
                "versions": dict(machines[0].versions),
                "clock_skew": round(_largest(skews), 3),
                "open_files": _least(open_files.limit for open_files in limits.values()),
            }

    def devices(self, device: str) -> None:
        """Every process has a device, one kind for all, and no GPU serves two."""
        with self._timed():
            processes = self._processes
            topology = processes.topology
            if not processes.several:
                return
            host = self._hosts[topology.rank]
            devices = processes.gather(processes.agree(lambda: this_device(device, topology, host)))
            try:
                refuse_devices(devices, self._hosts)
            except InputError as error:
                processes.stop(error)

    def run_directory(self, directory: Path) -> None:
        """All processes see the directory that rank zero has, and every node may write there."""
        with self._timed():
            if self._processes.several:
                seconds = check_shared(self._processes, directory, self._hosts)
                self._facts["shared_after"] = round(seconds, 3)

    def step(self, network: nn.Module, directory: Path, needs: Needs, *, device: str) -> None:
        """Room for checkpoints and batches, and the exchange of gradients on the ``device`` that trains."""
        with self._timed():
            if self._processes.several:
                self._exchange(network, needs, device)
            self._room(network, directory, needs)
            if needs.handed_over is not None:
                self._shared_memory(needs.handed_over)
        if self._processes.several:
            topology = self._processes.topology
            nodes = f"{topology.nodes} node{'' if topology.nodes == 1 else 's'}"
            self._said.insert(
                0, f"{topology.world_size} processes on {nodes} answered in {duration(self._seconds)}"
            )

    def _exchange(self, network: nn.Module, needs: Needs, device: str) -> None:
        processes = self._processes
        here = torch.device(process_device(device, processes.topology))
        check_sum(processes, processes.sum_tensor, self._hosts, device=here)
        trained = sum(each.numel() for each in network.parameters() if each.requires_grad)
        found = measure(processes, processes.sum_tensor, device=here, most=4 * trained)
        needed = exchanged_a_step(trained, processes.topology.world_size, needs.strategy)
        self._facts["all_reduce"] = {
            "device": here.type,
            "bytes": found.bytes,
            "seconds": round(found.seconds, 6),
            "bus_bytes_per_second": round(found.bus),
            "bytes_per_step": round(needed),
            "seconds_per_step": round(needed / found.bus, 6),
        }
        self._said.append(_of_exchange(found, needed, needs.strategy))

    def _room(self, network: nn.Module, directory: Path, needs: Needs) -> None:
        checkpoint = checkpoint_bytes(network, optimizer_values=needs.optimizer_values)
        sharded = needs.strategy.startswith("deepspeed") or needs.strategy == "fsdp"
        files = self._processes.topology.world_size + 2 if sharded else 1

        def look() -> tuple[int | None, list[str]]:
            room = room_in(directory)
            warnings = check_room(room, directory, checkpoint=checkpoint, kept=needs.kept, files_each=files)
            return room.free, warnings

        free, warnings = self._processes.on_first(look)
        self._tell(warnings)
        self._facts |= {"disk_free": free, "checkpoint_bytes": checkpoint}
        if free is not None:
            self._said.append(
                f"run directory: {size(free)} free for {needs.kept + 2} checkpoints of {size(checkpoint)}"
            )

    def _shared_memory(self, needs: HandedOver) -> None:
        topology = self._processes.topology
        told = self._processes.gather((shared_memory_free(), needs))
        warnings = {}
        for host, (free, theirs) in zip(self._hosts, told, strict=True):
            sentence, fatal = shared_memory_problem(free, theirs, topology.local_world_size, host)
            if fatal:
                self._processes.stop(InputError(sentence))
            if sentence:
                warnings[host] = sentence
        self._tell(list(warnings.values()))
        self._facts["shared_memory_free"] = _least(free for free, _ in told)

    def _tell(self, warnings: list[str]) -> None:
        self._warnings += warnings
        if self._processes.topology.first:
            for warning in warnings:
                self._warn(warning)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._seconds += time.monotonic() - began


def _of_exchange(found: Bandwidth, needed: float, strategy: str) -> str:
    several = ", and again for each micro-batch" if strategy in ("deepspeed_stage_3", "fsdp") else ""
    return (
        f"all-reduce {size(found.bus)}/s, a step exchanges {size(needed)}{several} "
        f"({duration(needed / found.bus)})"
    )


def _largest(skews: list[float]) -> float:
    return max(skews, key=lambda skew: skew**2)


def _least(numbers: Iterable[int | None]) -> int | None:
    """The least of those that are known."""
    return min((number for number in numbers if number is not None), default=None)
