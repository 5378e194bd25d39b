"""The ledger of a run: which lines each process was given in which step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback

from distrib.runtime.processes import Processes
from distrib.stream.batches import StepBatch
from distrib.stream.ledger import LedgerWriter, next_segment, write_expected
from distrib.stream.loader import TrainingLoader
from distrib.training.learner import Learner

LEDGER = "ledger"


class LedgerKeeping(Callback):
    """Each process appends the lines of every step it has done; a checkpoint is written when the records
    of all its steps are on the disk. ``lines`` (N,) of ``total`` are trained on; ``resumed_from`` is the
    checkpoint that the run goes on from."""

    def __init__(
        self,
        directory: Path,
        *,
        processes: Processes,
        stream: TrainingLoader,
        lines: npt.NDArray[np.int64],
        total: int,
        resumed_from: Path | None,
    ) -> None:
        self._directory = directory / LEDGER
        self._processes = processes
        self._stream = stream
        self._lines, self._total = lines, total
        self._resumed_from = resumed_from
        self._writer: LedgerWriter | None = None

    def _take_over(self) -> None:
        """Bring the ledger along where the run goes on in another directory: its first steps are in it."""
        if self._resumed_from is None or self._directory.exists():
            return
        theirs = self._resumed_from.parent / LEDGER
        if theirs.is_dir():
            aside = self._directory.with_name(f".{LEDGER}.part")
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(theirs, aside)
            aside.rename(self._directory)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a segment at the step where the stream stands."""
        topology = self._processes.topology

        def segment() -> int:
            self._take_over()
            number = next_segment(self._directory)
            write_expected(self._directory, self._lines, total=self._total, segment=number)
            return number

        number = self._processes.on_first(segment)
        self._writer = self._processes.agree(
            lambda: LedgerWriter(
                self._directory,
                segment=number,
                rank=topology.rank,
                world_size=topology.world_size,
                start_step=self._stream.number,
                lines=self._lines.size,
            )
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Append the step."""
        assert isinstance(pl_module, Learner)
        assert self._writer is not None
        assert pl_module.facts is not None
        self._writer.append(
            step=batch.number,
            epoch=batch.epoch,
            lines=np.asarray(pl_module.facts.used, dtype=np.uint32),
            bad=np.asarray(pl_module.facts.unused, dtype=np.uint32),
            last=batch.last,
        )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What a checkpoint holds stays on record even if the machine fails."""
        assert isinstance(pl_module, Learner)
        if self._writer is None:
            return
        if pl_module.keeping.alone:
            self._writer.sync()
        else:
            self._processes.agree(self._writer.sync)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
