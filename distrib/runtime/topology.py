"""Where this process stands among the processes of a job, from what its launcher says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from distrib.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The place of one process: its rank among ``world_size``, its local rank among those of its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0

    @property
    def first(self) -> bool:
        """True for rank zero, which alone prints and writes what a job writes once."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Nodes of the job; all have the same number of processes."""
        return self.world_size // self.local_world_size


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What a launcher calls the five numbers of a topology; of several names the first that is set counts."""

    rank: str
    world_size: tuple[str, ...]
    local_rank: str
    local_world_size: tuple[str, ...]
    node_rank: str


_TORCHRUN = _Names(
    rank="RANK",
    world_size=("WORLD_SIZE",),
    local_rank="LOCAL_RANK",
    local_world_size=("LOCAL_WORLD_SIZE",),
    node_rank="GROUP_RANK",
)
_SRUN = _Names(
    rank="SLURM_PROCID",
    # The tasks of this step; those of the job are another number where a step uses a part of them.
    world_size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    local_rank="SLURM_LOCALID",
    local_world_size=("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
    node_rank="SLURM_NODEID",
)


def topology_of(environment: Mapping[str, str]) -> Topology:
    """The topology that the variables of torchrun or srun give; one process without them.

    A batch script of SLURM that has not started its tasks yet is a single process.

    Raises InputError where the variables are no numbers or contradict each other.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _read(environment, _TORCHRUN)
    if not is_step(environment):
        return Topology()
    return _read(environment, _SRUN) if any(n in environment for n in _SRUN.world_size) else Topology()


def is_step(environment: Mapping[str, str]) -> bool:
    """Whether srun has started this process as one of its tasks."""
    return "SLURM_PROCID" in environment and not _is_batch_script(environment)


def _is_batch_script(environment: Mapping[str, str]) -> bool:
    """Whether the job's script runs this by itself: it has the numbers of tasks that srun would start."""
    return "SLURM_JOB_ID" in environment and not {"SLURM_STEP_ID", "SLURM_STEPID"} & environment.keys()


def _read(environment: Mapping[str, str], names: _Names) -> Topology:
    world_name = _first_set(environment, names.world_size)
    local_world_name = _first_set(environment, names.local_world_size)
    rank = _number(environment, names.rank, None)
    world_size = _number(environment, world_name, None)
    topology = Topology(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environment, names.local_rank, rank),
        local_world_size=_number(environment, local_world_name, world_size),
        node_rank=_number(environment, names.node_rank, 0),
    )
    in_order = topology.rank < topology.world_size and topology.local_rank < topology.local_world_size
    if not in_order or topology.world_size % topology.local_world_size:
        raise InputError(
            f"The environment has {names.rank}={rank} and {world_name}={world_size}, local rank "
            f"{topology.local_rank} of {topology.local_world_size}, which is no process of a group with "
            "equally many on every node; start it with torchrun or srun, or unset these variables to run one "
            "process."
        )
    return topology


def _first_set(environment: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((name for name in names if name in environment), names[0])


def _number(environment: Mapping[str, str], name: str, default: int | None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)+", text):
        raise InputError(
            f"The environment has {name}={text}: not every node has the same number of processes; ask srun "
            "for --ntasks-per-node, or unset its variables to run one process."
        )
    # SLURM writes 2(x3) for two tasks on each of three nodes.
    text = re.sub(r"^(\d+)\(x\d+\)$", r"\1", text)
    if not text.isdecimal():
        raise InputError(
            f"The environment has {name}={text}, which is no process of a group; start it with torchrun or "
            "srun, or unset its variables to run one process."
        )
    return int(text)
