"""What this machine has for a launch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from distrib.errors import InputError
from launchers.plan import LaunchPlan

_NVIDIA = "proc/driver/nvidia/gpus"
_SIGNS = ("kfd", "dxg", "nvidia*", "nvhost*", "nvgpu*")
"""Devices (/dev) of AMD, of WSL, and of NVIDIA in containers and on small boards."""


def gpus_here(environ: Mapping[str, str], root: Path = Path("/")) -> int | None:
    """GPUs of this machine that may be used: those that CUDA_VISIBLE_DEVICES leaves, else all.

    None where there may be some and nobody says how many without a driver's library: only NVIDIA's driver
    lists them, and not everywhere.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    try:
        return len(list((root / _NVIDIA).iterdir()))
    except OSError:
        return None if any(any((root / "dev").glob(sign)) for sign in _SIGNS) else 0


def check_machine(plan: LaunchPlan, environ: Mapping[str, str]) -> None:
    """Raise InputError where a plan asks for what this machine has not, its interpreter among it."""
    options = plan.options
    if options.nodes > 1:
        raise InputError(
            f"--nodes {options.nodes}: a local launch has one machine; use `ketos launch slurm` or `ketos "
            "launch ray`, or --procs-per-node for more processes."
        )
    if shutil.which(plan.python) is None:
        raise InputError(
            f"--python {plan.python}: is no program on this machine; give an interpreter, or a script that "
            "runs one."
        )
    gpus = gpus_here(environ)
    if gpus is not None and options.gpus_per_node > gpus:
        raise InputError(
            f"--gpus-per-node {options.gpus_per_node}: this machine has {gpus} to use; ask "
            "for as many or fewer."
        )
    cores = len(os.sched_getaffinity(0))
    wanted = (options.cpus_per_proc or 1) * plan.processes_per_node
    if options.cpus_per_proc is not None and wanted > cores:
        raise InputError(
            f"--cpus-per-proc {options.cpus_per_proc}: {plan.processes_per_node} processes want {wanted} "
            f"cores and this machine has {cores}; ask for fewer."
        )
