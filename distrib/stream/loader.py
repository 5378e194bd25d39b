"""Handing over the steps of a plan, read ahead by worker processes, with a position to resume from."""

from __future__ import annotations

import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from distrib.errors import InputError, KetosError, PeerLost
from distrib.parent_process import end_with_parent
from distrib.stream.batches import BatchReader, LineBatch, StepBatch
from distrib.stream.forking import wait_for_threads
from distrib.stream.micro_batches import split_step
from distrib.stream.plan import EpochPlan, PlanSettings, describe_difference, sequential_plan

PREFETCH = 4
"""Micro-batches that each worker has ready or under way; more would only hold memory."""

_GRACE_SECONDS = 60
"""How long a worker that is told to end goes on reading, if the process it reads for does not end before."""

Lines = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of each global step a process gets, and how much of it at once.

    ``lines`` and ``pixels`` (padding included) bound a micro-batch; 0 is no bound.
    """

    rank: int = 0
    world_size: int = 1
    lines: int = 1
    pixels: int = 0


@dataclass(frozen=True, kw_only=True)
class _Slices:
    """One process's part of a plan's steps; ``on_shards`` is told which shards come next."""

    lines: Lines
    widths: npt.NDArray[np.int32]
    share: Share
    height: int
    on_shards: Callable[[Sequence[int]], None] | None

    def micro_batches(self, plan: EpochPlan, start: int, parts: deque[int]) -> Iterator[Lines]:
        """The line numbers of micro-batches from step ``start`` on; how many a step has goes to ``parts``."""
        announced: tuple[int, ...] = ()
        for step, batch in enumerate(plan.batches(start), start=start):
            shards = tuple(plan.window_shards(step))
            if self.on_shards is not None and shards != announced:
                self.on_shards(shards)
                announced = shards
            slices = split_step(
                self.widths[batch],
                world_size=self.share.world_size,
                max_lines=self.share.lines,
                max_pixels=self.share.pixels,
                height=self.height,
            )[self.share.rank]
            parts.append(len(slices))
            for positions in slices:
                yield self.lines[batch[positions]]


class TrainingLoader:
    """One process's part of the steps of one epoch after the other; iterating yields what is left of one.

    The steps are the same for every number of processes and workers. The state is (epoch, step, number of
    steps handed over in all, facts that decide the order): steps *handed over*, not read ahead.

    ``lines`` (N,) are the line numbers to train on in ascending order and ``shard_sizes`` how many of them
    each shard holds; ``widths`` (N,) are theirs as network input. ``on_shards`` is told which shards come
    next. ``facts`` name what the order depends on besides.
    """

    def __init__(
        self,
        reader: BatchReader,
        *,
        lines: Lines,
        widths: npt.NDArray[np.int32],
        shard_sizes: npt.NDArray[np.int64],
        settings: PlanSettings,
        seed: int,
        share: Share,
        workers: int,
        facts: dict[str, Any],
        pin_memory: bool = False,
        on_shards: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self._slices = _Slices(
            lines=lines, widths=widths, share=share, height=settings.height, on_shards=on_shards
        )
        self._by_lines = settings.global_lines > 0
        self._epoch, self._step, self._number = 0, 0, 0
        self.facts = facts
        # Neither plans nor slices refer to this object: in a cycle, workers end seconds after its last use.
        make_plan = partial(EpochPlan, shard_sizes, widths, settings=settings, seed=seed)
        self._plans = lru_cache(maxsize=2)(make_plan)
        self._queue = _Queue()
        self._loader = _data_loader(
            reader, self._queue, workers=workers, pin_memory=pin_memory, persistent=True
        )

    def __len__(self) -> int:
        """Steps of the current epoch, those done included."""
        return self.plan(self._epoch).steps

    @property
    def number(self) -> int:
        """Steps handed over since the run began."""
        return self._number

    @property
    def varies(self) -> bool:
        """Whether epochs differ in their number of steps."""
        return not self._by_lines

    def __iter__(self) -> Iterator[StepBatch]:
        epoch, start = self._epoch, self._step
        plan = self.plan(epoch)
        parts: deque[int] = deque()
        self._queue.items = self._slices.micro_batches(plan, start, parts)
        delivered = _delivered(self._loader)
        for step in range(start, plan.steps):
            # The count of a step's micro-batches is known once the first of them was asked for.
            first = next(delivered)
            micro_batches = [first, *(next(delivered) for _ in range(parts.popleft() - 1))]
            self._step, self._number = step + 1, self._number + 1
            if self._step == plan.steps:
                self._epoch, self._step = epoch + 1, 0
            yield StepBatch(
                micro_batches=micro_batches,
                epoch=epoch,
                step=step,
                steps=plan.steps,
                number=self._number - 1,
            )
        # Lets the workers come to rest before the next epoch.
        next(delivered, None)

    def plan(self, epoch: int) -> EpochPlan:
        """The steps of an epoch, over all processes."""
        return self._plans(epoch=epoch)

    def refuse_other(self, state: dict[str, Any]) -> None:
        """Raise InputError where data or batch settings are not those of a saved state."""
        difference = describe_difference(state["facts"], self.facts)
        if difference is not None:
            raise InputError(
                f"The checkpoint was written with other settings: {difference}; resume with those it was "
                "written with, or add --resume-anyway to go on with these from the start of an epoch."
            )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"epoch": self._epoch, "step": self._step, "number": self._number, "facts": self.facts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; with changed facts, to the start of the epoch after it."""
        self._epoch, self._step = int(state["epoch"]), int(state["step"])
        self._number = int(state["number"])
        if self.begins_anew(state):
            self._epoch, self._step = self._epoch + 1, 0

    def begins_anew(self, state: dict[str, Any]) -> bool:
        """Whether the rest of a saved state's epoch does not exist under today's facts."""
        return int(state["step"]) > 0 and describe_difference(state["facts"], self.facts) is not None


class EvaluationLoader:
    """All chosen lines once over all processes, in batches of similar width, equally many everywhere.

    ``height`` is the pixels that a column counts against the share's limit.
    """

    def __init__(
        self,
        reader: BatchReader,
        *,
        lines: Lines,
        widths: npt.NDArray[np.int32],
        share: Share,
        workers: int,
        height: int = 1,
        pin_memory: bool = False,
    ) -> None:
        plan = sequential_plan(widths, batch_size=share.lines, max_pixels=share.pixels, height=height)
        rounds = -(-len(plan) // share.world_size)
        mine = [lines[batch] for batch in plan[share.rank :: share.world_size]]
        mine += [np.empty(0, dtype=np.int64)] * (rounds - len(mine))
        self._batches = mine
        self._queue = _Queue()
        self._loader = _data_loader(
            reader, self._queue, workers=workers, pin_memory=pin_memory, persistent=False
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[LineBatch]:
        self._queue.items = iter(self._batches)
        return _delivered(self._loader)


def _delivered(loader: DataLoader[LineBatch | _Failed]) -> Iterator[LineBatch]:
    """The loader's batches. Raises RunError where a worker process was killed, or what ended its reading."""
    with reader_deaths():
        if loader.num_workers:
            wait_for_threads()
        batches = iter(loader)
        while True:
            try:
                batch = next(batches, None)
            except (ConnectionError, EOFError, FileNotFoundError) as error:
                # It was killed while it sent something, and torch may not know of its death yet.
                raise _reader_killed() from error
            if batch is None:
                return
            if isinstance(batch, _Failed):
                try:
                    raise batch.error
                finally:
                    del batch  # it would keep the workers for as long as its error is kept
            yield batch


@contextmanager
def reader_deaths() -> Iterator[None]:
    """Raise RunError where a worker process of a loader was killed during the block.

    torch learns of it by a signal, so that its RuntimeError may come out of whatever is being computed.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise _reader_killed() from error


def _reader_killed() -> PeerLost:
    if threading.current_thread() is threading.main_thread():
        # torch would raise its error anew out of whatever cleans up, as each of the other workers ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return PeerLost(
        "A process reading data was killed, most likely for want of memory or shared memory; lessen "
        "--workers or --batch-size, or give the job more of it."
    )


class _Queue(Sampler[Lines]):
    """The batch sampler of a DataLoader whose workers live on: what it yields changes between epochs."""

    def __init__(self) -> None:
        self.items: Iterator[Lines] = iter(())

    def __iter__(self) -> Iterator[Lines]:
        return self.items


@dataclass(frozen=True)
class _Failed:
    """What ended a worker's reading, as it is: torch would hand over its traceback as its message."""

    error: KetosError | MemoryError | OSError


class _BatchDataset(Dataset[LineBatch | _Failed]):
    """Whole batches as items, so that a worker pads and encodes what it decoded."""

    def __init__(self, reader: BatchReader) -> None:
        self._reader = reader

    def __getitem__(self, lines: Lines) -> LineBatch | _Failed:
        try:
            return self._reader(lines)
        except (KetosError, MemoryError, OSError) as error:
            return _Failed(error)


def _data_loader(
    reader: BatchReader, queue: _Queue, *, workers: int, pin_memory: bool, persistent: bool
) -> DataLoader[LineBatch | _Failed]:
    with warnings.catch_warnings():
        # How many workers there are is the user's choice, and torch's advice speaks to programmers.
        warnings.simplefilter("ignore")
        # The sampler yields whole batches as single items: batch_size None switches torch's collation off.
        return DataLoader(
            _BatchDataset(reader),
            batch_size=None,
            sampler=queue,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=persistent and workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            worker_init_fn=_begin_worker,
            # The seed of its workers, which use none, must not be drawn from the generator dropout uses.
            generator=torch.Generator(),
        )


def _begin_worker(_: int) -> None:
    # Workers beside a training process must not each start a thread pool of their own.
    torch.set_num_threads(1)
    # Who ends a job, signals all of its processes; the main one needs its readers until it has saved.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))
    end_with_parent()
