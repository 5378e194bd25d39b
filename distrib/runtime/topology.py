"""Where this process stands among the processes of a job, from what its launcher says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distrib.errors import InputError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


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


def topology_of(environment: Mapping[str, str]) -> Topology:
    """The topology that torchrun (or anything that sets its variables) gives; one process without them.

    Raises InputError where the variables are no numbers or contradict each other.
    """
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return Topology()
    try:
        rank, world, local_rank, local_world, node = (
            int(environment.get(name, default))
            for name, default in zip(_VARIABLES, ("0", "1", "0", "1", "0"), strict=True)
        )
    except ValueError:
        stated = ", ".join(f"{name}={environment[name]}" for name in _VARIABLES if name in environment)
        raise InputError(
            f"The launcher's variables are not numbers ({stated}); start with torchrun."
        ) from None
    if not (0 <= rank < world and 0 <= local_rank < local_world and world % local_world == 0):
        raise InputError(
            f"The launcher's variables contradict each other (RANK={rank} of WORLD_SIZE={world}, "
            f"LOCAL_RANK={local_rank} of LOCAL_WORLD_SIZE={local_world}); start the same number of processes "
            "on every node with torchrun, or unset them to run one process."
        )
    return Topology(
        rank=rank, world_size=world, local_rank=local_rank, local_world_size=local_world, node_rank=node
    )
