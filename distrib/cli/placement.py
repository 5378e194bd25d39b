"""Which of several processes this one is, as the launcher that started them says in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distrib.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """This process is number ``rank`` of ``world_size`` that were started together."""

    rank: int = 0
    world_size: int = 1


def placement(environment: Mapping[str, str]) -> Placement:
    """The placement that torchrun (RANK, WORLD_SIZE) or srun (SLURM_PROCID, SLURM_NTASKS) set.

    A batch script of SLURM that has not started its tasks yet is a single process.

    Raises:
        InputError: the variables do not go together.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _read(environment, "RANK", "WORLD_SIZE")
    if "SLURM_PROCID" not in environment or _is_batch_script(environment):
        return Placement()
    # The tasks of this step; those of the job are another number where a step uses a part of them.
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    return _read(environment, "SLURM_PROCID", size) if size in environment else Placement()


def _is_batch_script(environment: Mapping[str, str]) -> bool:
    """Whether the job's script runs this by itself: it has the numbers of tasks that srun would start."""
    return "SLURM_JOB_ID" in environment and not {"SLURM_STEP_ID", "SLURM_STEPID"} & environment.keys()


def _read(environment: Mapping[str, str], rank_name: str, size_name: str) -> Placement:
    rank, size = environment.get(rank_name, ""), environment.get(size_name, "")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise InputError(
            f"The environment has {rank_name}={rank} and {size_name}={size}, which is no process of a group; "
            "unset both to run a single process."
        )
    return Placement(rank=int(rank), world_size=int(size))
