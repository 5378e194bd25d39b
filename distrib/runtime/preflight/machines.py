"""What each process runs on and with; differences that would end in a hang or in wrong results."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import torch

import distrib
from distrib.errors import InputError
from distrib.runtime.preflight.wording import holders, place
from distrib.runtime.processes import Processes

KETOS: Final = "ketos-distrib"
_MUST_AGREE: Final = (KETOS, "torch", "python", "deepspeed")
_MOST_SKEW = 5.0
"""Seconds by which clocks may differ; leases and the order of events stand far more than NTP leaves."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a process runs: host, versions by package (and of python), folder of the package ``distrib``."""

    host: str
    versions: Mapping[str, str]
    folder: str


def this_machine(*, deepspeed: bool) -> Machine:
    """The machine of this process; the version of DeepSpeed where it is used."""
    versions = {
        "python": platform.python_version(),
        KETOS: distrib.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "lightning": _installed("lightning"),
    }
    if deepspeed:
        versions["deepspeed"] = _installed("deepspeed")
    return Machine(
        host=platform.node() or "localhost", versions=versions, folder=str(Path(distrib.__file__).parent)
    )


def compare(machines: Sequence[Machine]) -> list[str]:
    """Warnings of differences between machines, by rank, that may do no harm.

    Raises InputError for one that does, naming who has which version.
    """
    hosts = [machine.host for machine in machines]
    for package in _MUST_AGREE:
        found = [machine.versions.get(package, "none") for machine in machines]
        if len({_what_counts(package, version) for version in found}) > 1:
            origin = ""
            if package == KETOS and len({machine.folder for machine in machines}) > 1:
                origin = f" (imported from {holders([machine.folder for machine in machines], hosts)})"
            raise InputError(
                f"The processes run different versions of {package}: {holders(found, hosts)}{origin}; "
                "install the same on every node, or start all from one environment on a disk they share."
            )
    warnings = []
    for package in machines[0].versions:
        found = [machine.versions.get(package, "none") for machine in machines]
        if len(set(found)) > 1:
            warnings.append(
                f"Warning: {package} is {holders(found, hosts)}; the same on every node is safer."
            )
    folders = [machine.folder for machine in machines]
    if len(set(folders)) > 1:
        warnings.append(
            f"Warning: ketos is imported from {holders(folders, hosts)}; see that these are the same code."
        )
    return warnings


def clock_skews(processes: Processes, clock: Callable[[], float]) -> list[float]:
    """By how many seconds each process's ``clock`` is before (+) or behind (-) that of rank zero, at least.

    The others read theirs between two moments that rank zero knows by its own, so that what lies within
    the time the exchange took counts as no skew. Called by all processes.
    """
    began = clock()
    processes.sum([0.0])
    readings = processes.gather(clock())
    ended = clock()
    skews = [max(0.0, reading - ended) + min(0.0, reading - began) for reading in readings]
    skews[0] = 0.0
    return processes.gather(skews)[0]


def skew_warnings(skews: Iterable[float], hosts: Sequence[str]) -> list[str]:
    """A sentence for each host whose clock is far from rank zero's; ``skews`` and ``hosts`` by rank."""
    far = {host: skew for skew, host in zip(skews, hosts, strict=True) if abs(skew) > _MOST_SKEW}
    return [
        f"Warning: the clock of {host} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} that of "
        f"{place(0, hosts)}; set both by NTP (chrony), or the lease of the run directory and the times of "
        "events mislead."
        for host, skew in far.items()
    ]


def _what_counts(package: str, version: str) -> str:
    """The part of a version in which processes must not differ."""
    if package == "python":
        return ".".join(version.split(".")[:2])
    # What follows names the build: +cpu, +cu124.
    return version.partition("+")[0]


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
