"""States to save, and processes to save them, for the tests of checkpoints."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from distrib.runtime.checkpoints.names import checkpoint_name
from distrib.runtime.checkpoints.store import CheckpointFacts, CheckpointStore
from distrib.runtime.processes import Processes
from distrib.runtime.state import LocalState, Piece
from distrib.runtime.topology import Topology

SHAPES: dict[str, tuple[int, ...]] = {
    "weights/layer.weight": (5, 7, 40),
    "weights/layer.bias": (9,),
    "exp_avg/layer.bias": (9,),
    "step/layer.bias": (),
    "weights/none": (0, 4),
}


def tensors(step: int) -> dict[str, torch.Tensor]:
    """The whole state after ``step`` steps."""
    return {
        key: torch.arange(math.prod(shape), dtype=torch.float32).view(shape) + 1000 * step
        for key, shape in SHAPES.items()
    }


def state(step: int, *, rank: int = 0, world_size: int = 1) -> LocalState:
    """A process's part of it: an even cut of each tensor."""
    pieces = {}
    for key, tensor in tensors(step).items():
        size = tensor.numel()
        start, stop = rank * size // world_size, (rank + 1) * size // world_size
        if stop > start or rank == 0:
            pieces[key] = Piece(shape=tuple(tensor.shape), start=start, values=tensor.view(-1)[start:stop])
    return LocalState(pieces=pieces, groups=[{"lr": 0.1, "betas": (0.9, 0.999)}])


def facts(step: int, score: float | None = None) -> CheckpointFacts:
    """Of a validation where there is a score, else of an interval."""
    return CheckpointFacts(
        kind="interval" if score is None else "validation", step=step, epoch=step, score=score
    )


def store_of(directory: Path, **options: Any) -> CheckpointStore:
    """A store of one process."""
    options = {
        "keep_best": 2,
        "keep_last": 2,
        "sharded": False,
        "processes": Processes(Topology()),
        **options,
    }
    return CheckpointStore(directory, **options)


def saved(store: CheckpointStore, step: int, score: float | None = None, name: str | None = None) -> Path:
    """Save the state after ``step`` steps, wait for it, and return its path."""
    if name is None:
        name = f"step_{step:08d}.ckpt" if score is None else checkpoint_name(step, score)
    store.save(name, {"step": step}, state(step), facts(step, score), background=False)
    return store.directory / name


class Team:
    """Processes played by threads: each collective waits for all of them."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._items: list[Any] = [None] * world_size

    def run(self, work: Callable[[Processes], Any]) -> list[Any]:
        """What ``work`` returns as each process, by rank, or the exception it raises."""
        results: list[Any] = [None] * self.world_size

        def member(rank: int) -> None:
            try:
                results[rank] = work(_Member(self, rank))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=member, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def exchange(self, rank: int, item: Any) -> list[Any]:
        """Every member's item."""
        self._items[rank] = item
        self._barrier.wait()
        items = list(self._items)
        self._barrier.wait()
        return items


class _Member(Processes):
    def __init__(self, team: Team, rank: int) -> None:
        super().__init__(Topology(rank=rank, world_size=team.world_size, local_world_size=team.world_size))
        self._team = team

    def sum(self, numbers: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self.gather(list(numbers)), strict=True)]

    def gather(self, item: Any) -> list[Any]:
        return self._team.exchange(self.topology.rank, item)

    def part(self) -> None:
        self.gather(None)

    def on_first(self, function: Callable[[], Any]) -> Any:
        result = self.agree(lambda: function() if self.topology.first else None)
        return self.gather(result)[0]
