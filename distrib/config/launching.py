"""The options of `ketos launch`: what each target shares, and what is its own.

In an experiment file they stand under ``launch:``, those of all targets together, so that one file serves on
a laptop, on SLURM and on Ray; a target takes those it knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distrib.config.fields import option
from distrib.errors import InputError

Target = Literal["local", "slurm", "ray"]

_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Options of every target."""

    nodes: int = option(1, "--nodes", minimum=1, help="Machines.")
    gpus_per_node: int = option(0, "--gpus-per-node", minimum=0, help="GPUs of each machine to use.")
    procs_per_node: int | None = option(
        None,
        "--procs-per-node",
        minimum=1,
        help="Processes of each machine; by default one for each GPU, or one.",
    )
    cpus_per_proc: int | None = option(
        None, "--cpus-per-proc", minimum=1, help="CPU cores of each process, its reading workers included."
    )
    mem: str | None = option(
        None, "--mem", metavar="SIZE", help="Main memory of each machine, with K, M or G."
    )
    time: str | None = option(
        None, "--time", metavar="LIMIT", help="Longest time of a job, as minutes, HH:MM:SS or D-HH:MM:SS."
    )
    name: str | None = option(None, "--name", help="Name of the job; by default ketos and the command.")
    run_dir: Path | None = option(
        None,
        "--run-dir",
        help="Directory for what the launch keeps; by default the run directory (-o) of train and pretrain, "
        "else launches/NAME.",
    )
    env: tuple[str, ...] = option(
        (), "--env", metavar="KEY=VALUE", help="Variable of every process; repeatable."
    )
    python: str | None = option(
        None,
        "--python",
        metavar="PROGRAM",
        help="Interpreter of the processes, or a script that runs one in a container; by default this one.",
    )
    max_restarts: int = option(
        3, "--max-restarts", minimum=0, help="Times that failures are answered by starting again."
    )
    max_requeues: int = option(
        100,
        "--max-requeues",
        minimum=0,
        help="Times that preemptions, time limits and lost machines are answered by starting again.",
    )
    auto_batch: bool = option(
        False,
        "--auto-batch",
        off=("--no-auto-batch",),
        help="Where memory does not suffice, start again with half of -B and the same global batch.",
    )
    sweep: tuple[str, ...] = option(
        (),
        "--sweep",
        metavar="OPTION=A,B,…",
        help="Run the command for each value of an option; of several, for each combination; repeatable.",
    )
    dry_run: bool = option(False, "--dry-run", help="Print exactly what would run, and stop.")
    wait: bool | None = option(
        None,
        "--wait",
        off=("--detach",),
        help="Wait for the end, or return at once; by default local and ray wait and slurm does not.",
    )


@dataclass(frozen=True, kw_only=True)
class LocalLaunch(Launch):
    """Options of this machine."""

    debug: bool = option(
        False,
        "--debug",
        help="One process, this one, without reading workers and with anomaly detection, for a debugger.",
    )


@dataclass(frozen=True, kw_only=True)
class ElasticLaunch(Launch):
    """Options of targets that can do with fewer machines."""

    min_nodes: int | None = option(
        None, "--min-nodes", minimum=1, help="Fewest machines to run on where not all are to be had."
    )


@dataclass(frozen=True, kw_only=True)
class SlurmLaunch(ElasticLaunch):
    """Options of a SLURM cluster; those named as sbatch's mean the same."""

    partition_name: str | None = option(None, "--partition-name", help="Partition.")
    account: str | None = option(None, "--account", help="Account.")
    qos: str | None = option(None, "--qos", help="Quality of service.")
    constraint: str | None = option(None, "--constraint", help="Features that nodes must have.")
    exclude: str | None = option(None, "--exclude", metavar="NODES", help="Nodes not to use.")
    reservation: str | None = option(None, "--reservation", help="Reservation.")
    array: str | None = option(
        None,
        "--array",
        metavar="TASKS",
        help="Which runs of --sweep, and how many at once: 0-7%2, or %2 of all.",
    )
    signal_before: int = option(
        120, "--signal-before", minimum=1, help="Seconds before the time limit at which to save and requeue."
    )
    sbatch_line: tuple[str, ...] = option(
        (),
        "--sbatch-line",
        metavar="OPTION",
        help="Further option of sbatch, such as --licenses=x; repeatable.",
    )
    setup: tuple[str, ...] = option(
        (),
        "--setup",
        metavar="LINE",
        help="Line of shell before the command, such as `module load cuda`; repeatable.",
    )


@dataclass(frozen=True, kw_only=True)
class RayLaunch(ElasticLaunch):
    """Options of a Ray cluster."""

    address: str | None = option(
        None,
        "--address",
        help="Address of the cluster (host:port); by default the one that this machine is in.",
    )


@dataclass(frozen=True, kw_only=True)
class AnyLaunch(LocalLaunch, SlurmLaunch, RayLaunch):
    """The ``launch:`` section of an experiment file."""


LAUNCHES: dict[Target, type[Launch]] = {"local": LocalLaunch, "slurm": SlurmLaunch, "ray": RayLaunch}


def time_limit_minutes(text: str) -> int:
    """Minutes, rounded up, of a time limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises InputError where it is none.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise InputError(f"--time {text}: is no time limit; give minutes, HH:MM:SS or D-HH:MM:SS.")
    days, *rest = (None if part is None else int(part) for part in found.groups())
    numbers = [number for number in rest if number is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    total = ((days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    if total == 0:
        raise InputError(f"--time {text}: leaves no time at all; give minutes, HH:MM:SS or D-HH:MM:SS.")
    return -(-total // 60)


def environment_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """The variables of ``--env``. Raises InputError where one is not KEY=VALUE."""
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name) or "\n" in value:
            raise InputError(f"--env {pair}: must be KEY=VALUE with a variable's name and no line break.")
        variables[name] = value
    return variables
