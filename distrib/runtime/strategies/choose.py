"""From `--strategy` to what Lightning's Trainer takes."""

from __future__ import annotations

import torch

from distrib.errors import InputError
from distrib.runtime.devices import process_device
from distrib.runtime.strategies.base import StateKeeping
from distrib.runtime.topology import Topology

_SHARDED_PRECISIONS = ("32-true", "bf16-mixed")


def is_sharded(strategy: str) -> bool:
    """Whether a strategy divides the state among the processes."""
    return strategy.startswith("deepspeed") or strategy == "fsdp"


def check_strategy(strategy: str, *, offload: str, precision: str, device: str, optimizer: str) -> None:
    """Raise InputError for a strategy that is not installed or that cannot be with the other options."""
    if offload != "none" and not strategy.startswith("deepspeed"):
        raise InputError(
            f"--offload {offload} goes with DeepSpeed's strategies; add --strategy, or leave it out."
        )
    if not is_sharded(strategy):
        return
    if precision not in _SHARDED_PRECISIONS:
        allowed = " or ".join(_SHARDED_PRECISIONS)
        raise InputError(f"--strategy {strategy} works with --precision {allowed}, not {precision}.")
    if device.startswith("mps"):
        raise InputError(f"--strategy {strategy} works on CPUs and NVIDIA or AMD GPUs, not on mps.")
    if strategy == "fsdp":
        from distrib.runtime.strategies.fully_sharded import check_fully_sharded

        if optimizer == "Lamb":
            raise InputError(
                "--optimizer Lamb looks at whole parameters, which fsdp divides; use another one, or "
                "--strategy ddp."
            )
        check_fully_sharded(device)
    if strategy.startswith("deepspeed"):
        from distrib.runtime.strategies.deepspeed import check_deepspeed

        check_deepspeed(strategy, offload=offload, optimizer=optimizer)


def make_strategy(
    strategy: str, *, topology: Topology, device: str, offload: str, clip: float
) -> StateKeeping:
    """The strategy of a run; ``clip`` is the largest norm of a gradient, 0 for any."""
    if strategy.startswith("deepspeed"):
        from distrib.runtime.strategies.deepspeed import make_zero

        return make_zero(
            int(strategy[-1]), offload=offload, clip=clip, device=process_device(device, topology)
        )
    if strategy == "fsdp":
        from distrib.runtime.strategies.fully_sharded import FullySharded

        return FullySharded()
    from distrib.runtime.strategies.plain import DataParallel, SingleProcess

    if topology.world_size == 1:
        return SingleProcess(device=torch.device(process_device(device, topology)))
    # The processes have met already, and every parameter has a gradient in every step.
    return DataParallel(gradient_as_bucket_view=True)
