"""Inside a job: which one it is, what was allocated to it, as SLURM's variables tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from distrib.errors import InputError

_FIRST_SPECIAL_STEP: Final = 0xFFFFFFF0
"""Steps from this number on are SLURM's own, such as the shell of salloc; nobody has started them by srun."""

MEMORY_VARIABLES: Final = ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a job was given: machines, and on each of them processes, cores and GPUs.

    ``cpus_per_proc`` and ``gpus_per_node`` are None and 0 where the job did not say.
    """

    nodes: int
    procs_per_node: int
    cpus_per_proc: int | None
    gpus_per_node: int


def inside_allocation(environ: Mapping[str, str]) -> bool:
    """Whether this runs in a batch script or a shell of salloc, so that its machines are there already.

    Raises InputError in a process that srun has started: each of its tasks would make a launch of its own.
    """
    if "SLURM_JOB_ID" not in environ:
        return False
    step = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID") or ""
    if step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP:
        raise InputError(
            f"`ketos launch` was started by srun (step {step} of job {environ['SLURM_JOB_ID']}); call it "
            "without srun in the batch script, or the command itself with: srun ketos train …"
        )
    return True


def job_id(environ: Mapping[str, str]) -> str:
    """How SLURM's programs call this job.

    The tasks of an array have numbers of their own, but that of the last one stands for the whole array.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    try:
        return environ["SLURM_JOB_ID"]
    except KeyError:
        raise InputError(
            "There is no SLURM_JOB_ID here; start this with sbatch, or launch with: ketos launch slurm"
        ) from None


def allocation(environ: Mapping[str, str]) -> Allocation:
    """The resources of this job. Raises InputError where its nodes differ in their numbers of processes."""
    nodes = nodes_of_job(environ)
    return Allocation(
        nodes=nodes,
        procs_per_node=_procs_per_node(environ, nodes),
        cpus_per_proc=_number(environ, "SLURM_CPUS_PER_TASK"),
        gpus_per_node=gpus_of(environ.get("SLURM_GPUS_PER_NODE") or environ.get("SLURM_GPUS_ON_NODE") or ""),
    )


def nodes_of_job(environ: Mapping[str, str]) -> int:
    """The machines of this job: with --min-nodes, more or fewer each time it is started."""
    return _number(environ, "SLURM_JOB_NUM_NODES") or _number(environ, "SLURM_NNODES") or 1


def restarts(environ: Mapping[str, str]) -> int:
    """How often SLURM had started this job before this time."""
    return _number(environ, "SLURM_RESTART_COUNT") or 0


def for_srun(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what would make srun refuse a step, or give it less than the whole job.

    Cores of a process are not inherited by steps since 22.05 and contradict --cpus-per-task in another form
    since 23.11; of the three forms of memory only one may be set, but an outer job's stay in the environment;
    and --export=NONE of sbatch would leave the processes without any variables.
    """
    traps = {*MEMORY_VARIABLES, "SLURM_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_EXPORT_ENV"}
    return {name: value for name, value in environ.items() if name not in traps}


def for_sbatch(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the variables of a job around this: a new one would inherit its sizes."""
    kept = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"}
    return {name: value for name, value in environ.items() if not name.startswith("SLURM_") or name in kept}


def gpus_of(text: str) -> int:
    """GPUs in a list such as ``4``, ``a100:4``, ``gpu:a100:2(S:0-1),gpu:v100:2`` or ``(null)``."""
    count = 0
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        words = part.split(":")
        if words[-1].isdecimal() and (len(words) < 3 or words[0] == "gpu"):
            count += int(words[-1])
    return count


def _procs_per_node(environ: Mapping[str, str], nodes: int) -> int:
    asked = _number(environ, "SLURM_NTASKS_PER_NODE")
    if asked is not None:
        return asked
    tasks = _number(environ, "SLURM_NTASKS")
    if tasks is None:
        return 1
    if tasks % nodes:
        raise InputError(
            f"This job has {tasks} tasks on {nodes} nodes; all nodes must have the same number of processes: "
            "submit it with --ntasks-per-node instead of --ntasks."
        )
    return tasks // nodes


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() and int(text) > 0 else None
