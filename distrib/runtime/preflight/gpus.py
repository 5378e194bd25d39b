"""Each process on a device of its own, and all on devices of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distrib.errors import InputError
from distrib.runtime.devices import process_device
from distrib.runtime.preflight.wording import holders, place
from distrib.runtime.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a process computes on: ``cpu``, ``mps`` or ``cuda``, and the GPU's UUID, empty where unknown."""

    kind: str
    uuid: str = ""


def this_device(device: str, topology: Topology, host: str) -> Device:
    """What ``--device`` leads to here. Raises InputError, naming the host, where that cannot be."""
    try:
        chosen = process_device(device, topology)
    except InputError as error:
        raise InputError(f"{host}: {error}") from None
    kind = chosen.partition(":")[0]
    if kind != "cuda":
        return Device(kind=kind)
    # torch says it since 2.5.
    return Device(kind=kind, uuid=str(getattr(torch.cuda.get_device_properties(chosen), "uuid", "")))


def refuse_devices(devices: Sequence[Device], hosts: Sequence[str]) -> None:
    """Raise InputError where processes of a host share a GPU or some have none; both by rank."""
    kinds = [device.kind for device in devices]
    if len(set(kinds)) > 1:
        raise InputError(
            f"The processes do not all compute on one kind of device: {holders(kinds, hosts)}; see with "
            "nvidia-smi why a GPU is missing there, leave that node out, or use --device cpu for all."
        )
    first: dict[tuple[str, str], int] = {}
    for rank, (device, host) in enumerate(zip(devices, hosts, strict=True)):
        other = first.setdefault((host, device.uuid), rank) if device.uuid else rank
        if other != rank:
            raise InputError(
                f"Process {other} and {place(rank, hosts)} use the same GPU ({device.uuid}); start one "
                "process for each GPU (--procs-per-node), or give each task its own (srun --gpus-per-task=1)."
            )
