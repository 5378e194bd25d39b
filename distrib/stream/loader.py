"""Handing over the batches of a plan, read ahead by worker processes, with a position to resume from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from distrib.errors import InputError, RunError
from distrib.stream.batches import BatchReader, LineBatch
from distrib.stream.plan import Batch, epoch_plan, sequential_plan

_PREFETCH = 4


class TrainingLoader:
    """The batches of one epoch after the other; iterating once yields what is left of the current epoch.

    Its state is (epoch, step, fingerprint of data and settings): batches *handed over*, not prefetched.
    """

    def __init__(
        self,
        reader: BatchReader,
        *,
        lines: npt.NDArray[np.int64],
        widths: npt.NDArray[np.int32],
        batch_size: int,
        seed: int,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        self._lines, self._widths = lines, widths
        self._batch_size, self._seed = batch_size, seed
        self._epoch, self._step = 0, 0
        self._batches = _BatchList()
        self._loader = _data_loader(
            reader, self._batches, workers=workers, pin_memory=pin_memory, persistent=True
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return -(-self._lines.size // self._batch_size)

    def __iter__(self) -> Iterator[LineBatch]:
        plan = self.plan(self._epoch)
        self._batches.batches = [self._lines[batch] for batch in plan[self._step :]]
        for batch in _delivered(self._loader):
            self._step += 1
            if self._step == len(plan):
                self._epoch, self._step = self._epoch + 1, 0
            yield batch

    def plan(self, epoch: int) -> list[Batch]:
        """The plan of an epoch in positions into this loader's lines."""
        return epoch_plan(self._widths, batch_size=self._batch_size, seed=self._seed, epoch=epoch)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything that decides the order: lines, widths, batch size, seed."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(self._lines.tobytes())
        digest.update(self._widths.tobytes())
        digest.update(np.asarray([self._batch_size, self._seed]).tobytes())
        return digest.hexdigest()

    def refuse_other(self, state: dict[str, Any]) -> None:
        """Raise InputError where data or batch settings are not those of a saved state."""
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                "The checkpoint was written with other training data, --batch-size, --partition or --seed; "
                "resume with those it was written with, or start anew with `--load`."
            )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"epoch": self._epoch, "step": self._step, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position. Raises InputError where data or batch settings are not those saved."""
        self.refuse_other(state)
        self._epoch, self._step = int(state["epoch"]), int(state["step"])


class EvaluationLoader:
    """All chosen lines once, in batches of similar width."""

    def __init__(
        self,
        reader: BatchReader,
        *,
        lines: npt.NDArray[np.int64],
        widths: npt.NDArray[np.int32],
        batch_size: int,
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        plan = sequential_plan(widths, batch_size=batch_size)
        self._batches = _BatchList([lines[batch] for batch in plan])
        self._loader = _data_loader(
            reader, self._batches, workers=workers, pin_memory=pin_memory, persistent=False
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[LineBatch]:
        return _delivered(self._loader)


def _delivered(loader: DataLoader[LineBatch]) -> Iterator[LineBatch]:
    """The loader's batches. Raises RunError where a worker process was killed."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            "A process reading data was killed, most likely for want of memory; lessen --workers or "
            "--batch-size, or give the job more memory."
        ) from error


class _BatchList(torch.utils.data.Sampler[Batch]):
    """The batch sampler of a DataLoader whose workers live on: its list changes between epochs."""

    def __init__(self, batches: list[Batch] | None = None) -> None:
        self.batches: list[Batch] = batches or []

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _BatchDataset(Dataset[LineBatch]):
    """Whole batches as items, so that a worker pads and encodes what it decoded."""

    def __init__(self, reader: BatchReader) -> None:
        self._reader = reader

    def __getitem__(self, lines: Batch) -> LineBatch:
        return self._reader(lines)


def _data_loader(
    reader: BatchReader, batches: _BatchList, *, workers: int, pin_memory: bool, persistent: bool
) -> DataLoader[LineBatch]:
    # The sampler yields whole batches as single items: batch_size None switches torch's collation off.
    return DataLoader(
        _BatchDataset(reader),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=persistent and workers > 0,
        prefetch_factor=_PREFETCH if workers else None,
        worker_init_fn=_one_thread,
        # The seed of its workers, which use none, must not be drawn from the generator that dropout uses.
        generator=torch.Generator(),
    )


def _one_thread(_: int) -> None:
    # Workers beside a training process must not each start a thread pool of their own.
    torch.set_num_threads(1)
