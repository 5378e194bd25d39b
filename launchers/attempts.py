"""An attempt at a run: what its processes are started with, and how it came out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from distrib.runtime.directory.endings import ATTEMPT_VARIABLE
from launchers.places import attempt_folder, rank_log
from launchers.plan import LaunchPlan
from launchers.programs import SAFE_PATH

Cause = Literal[
    "done",
    "input",
    "busy",
    "run",
    "memory",
    "preempted",
    "lost",
    "killed",
    "peer",
    "timeout",
    "unexpected",
    "cancelled",
    "time",
]
"""Why an attempt ended: all done; bad input; the run directory in use by another; a failure that would come
again; out of memory; a signal after which the state was saved; a machine went away; a process was killed;
processes lost each other; one waited too long; an error nobody has foreseen; a person wanted it;
the time of the launch is over."""


_THREADS: Final = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The ``number``-th attempt (from 1): ``words`` are the command line of every process, ``environment``
    what is laid over their variables, ``folder`` takes their logs and endings."""

    number: int
    folder: Path
    words: tuple[str, ...]
    environment: Mapping[str, str]

    @classmethod
    def of(cls, plan: LaunchPlan, number: int, *overrides: str) -> Attempt:
        """An attempt of a plan, with further options of its command."""
        folder = attempt_folder(plan.run_dir, number)
        return cls(
            number=number,
            folder=folder,
            words=plan.words(*overrides),
            environment={
                **SAFE_PATH,
                **threads_of(plan, os.environ),
                **plan.environment,
                ATTEMPT_VARIABLE: str(folder),
            },
        )

    def log(self, rank: int) -> Path:
        """What the process ``rank`` prints, on both streams."""
        return rank_log(self.folder, rank)


def threads_of(plan: LaunchPlan, environ: Mapping[str, str]) -> dict[str, str]:
    """How many threads a process computes with: as many as it was given cores; else what ``environ`` says;
    else one where there are others beside it, as they must not each compute with all cores of a machine."""
    if plan.options.cpus_per_proc is not None:
        return {_THREADS: str(plan.options.cpus_per_proc)}
    # Ray gives the driver of a job a single thread, which says nothing about the processes. They are placed
    # where there is a core for each.
    by_ray = plan.target == "ray"
    if _THREADS in environ and not by_ray:
        return {_THREADS: environ[_THREADS]}
    return {_THREADS: "1"} if by_ray or plan.processes_per_node > 1 else {}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt came out. ``code`` is 0 where all processes ended well, else the first bad exit code,
    negative for a signal; ``codes`` are those known, by rank. ``lost`` names machines that went away;
    ``cause`` and ``sentence`` are given where the target itself knows better than the processes."""

    code: int
    codes: Mapping[int, int] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    sentence: str | None = None
    cause: Cause | None = None
    nodes: int = 1
    processes: int = 1
