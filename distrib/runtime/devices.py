"""From `--device` and `--precision` to what Lightning and torch take."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from distrib.errors import InputError
from distrib.runtime.topology import Topology


def lightning_device(device: str, topology: Topology) -> dict[str, Any]:
    """``accelerator``, ``devices`` and ``num_nodes`` of Lightning's Trainer for auto, cpu, mps, cuda, cuda:N.

    Raises InputError for a device that this machine lacks.
    """
    kind, _, number = process_device(device, topology).partition(":")
    accelerator = "gpu" if kind == "cuda" else kind
    devices: list[int] | int = [int(number)] if kind == "cuda" else 1
    if sees_own_gpu_only(device, topology):
        # With a PlacedEnvironment of this device, for which each process has a machine of its own.
        return {"accelerator": accelerator, "devices": devices, "num_nodes": topology.world_size}
    if topology.local_world_size > 1:
        devices = topology.local_world_size
    return {"accelerator": accelerator, "devices": devices, "num_nodes": topology.nodes}


def process_device(device: str, topology: Topology) -> str:
    """The torch device of one of several processes: each GPU of a node serves one.

    A process that sees one GPU alone takes it: a scheduler has bound it to that. Whether it is another one
    for each process, no process can tell by itself.

    Raises InputError where a node has fewer GPUs than processes, or all are sent to one device.
    """
    if topology.world_size == 1:
        return torch_device(device)
    kind, _, number = torch_device(device).partition(":")
    if kind == "cpu":
        return kind
    if kind == "mps" or (":" in device and topology.local_world_size > 1):
        raise InputError(
            f"--device {device}: {topology.local_world_size} processes cannot share it; use cpu or cuda."
        )
    if sees_own_gpu_only(device, topology):
        return "cuda:0"
    if topology.local_world_size > torch.cuda.device_count():
        raise InputError(
            f"{topology.local_world_size} processes on a machine with {torch.cuda.device_count()} GPU(s); "
            "start one for each, or use --device cpu."
        )
    return f"cuda:{topology.local_rank if topology.local_world_size > 1 else int(number or 0)}"


def sees_own_gpu_only(device: str, topology: Topology) -> bool:
    """Whether one of several processes of a node would compute on the only GPU that it sees."""
    wants = device.partition(":")[0] in ("auto", "cuda", "gpu")
    return wants and topology.local_world_size > 1 and torch.cuda.device_count() == 1


def use_device(device: str, topology: Topology) -> None:
    """Let torch compute on the device of this process. Raises InputError as ``process_device`` does."""
    chosen = process_device(device, topology)
    if chosen.startswith("cuda"):
        torch.cuda.set_device(torch.device(chosen))


def torch_device(device: str) -> str:
    """The torch device for one process; auto is the first GPU, else the CPU."""
    kind, _, number = device.partition(":")
    if kind == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "gpu", "mps") or (number and not number.isdigit()):
        raise InputError(f"--device {device}: unknown; use auto, cpu, cuda, cuda:N or mps.")
    if kind in ("cuda", "gpu"):
        if not torch.cuda.is_available():
            raise InputError(
                f"--device {device}: no GPU that torch can use on this machine; use cpu or auto."
            )
        if int(number or 0) >= torch.cuda.device_count():
            raise InputError(
                f"--device {device}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0."
            )
        return f"cuda:{number or 0}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: not available on this machine; use cpu or auto.")
    return kind


def check_precision(precision: str, device: str) -> None:
    """Raise InputError where this machine has no such device or it cannot compute with ``precision``."""
    found = torch_device(device)
    if precision.startswith("transformer-engine") and importlib.util.find_spec("transformer_engine") is None:
        raise InputError(f"--precision {precision}: the package transformer-engine is not installed.")
    if precision.startswith("16") and found == "cpu":
        raise InputError(f"--precision {precision}: float16 needs a GPU; use bf16-mixed on the CPU.")


def autocast_of(precision: str, device: str) -> AbstractContextManager[Any]:
    """The autocast context of a Lightning precision for inference on ``device``; none for full precisions."""
    dtypes = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
    if precision not in dtypes:
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=dtypes[precision])


def full_precision_dtype(precision: str) -> torch.dtype:
    """The type a network's parameters have under a Lightning precision."""
    dtypes = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
    return dtypes.get(precision, torch.float32)
