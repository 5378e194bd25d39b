"""What a run is doing, told to its watchdog as it goes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.runtime.phases import Phases
from distrib.stream.batches import LineBatch, StepBatch
from distrib.stream.loader import TrainingLoader


class Watching(Callback):
    """Enters the phases of training. The last of the callbacks: what the others do belongs to the step.

    Between two steps the main thread waits for the loader's next batch and for nothing else. Steps are
    counted as in ``steps.jsonl``.
    """

    def __init__(self, phases: Phases, *, stream: TrainingLoader) -> None:
        self._phases = phases
        self._stream = stream

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The strategy is set up, and a checkpoint loaded."""
        self._phases.enter("preparing")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first step."""
        self._wait_for_step()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """The data are there."""
        self._phases.enter(f"computing step {batch.number}")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """The next data."""
        self._wait_for_step()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first batch of a validation."""
        self._wait_for_validation(0)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: LineBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The data are there."""
        self._phases.enter(f"validating (batch {batch_idx} after step {self._stream.number - 1})")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: LineBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The next data."""
        self._wait_for_validation(batch_idx + 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All lines are recognised."""
        self._phases.enter(f"summing up the validation after step {self._stream.number - 1}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next data of training."""
        self._wait_for_step()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first data of the next epoch, or none."""
        self._wait_for_step()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Until what follows the checkpoint."""
        self._phases.enter(f"saving a checkpoint after step {self._stream.number - 1}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing more is learned."""
        self._phases.enter("finishing")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """What ends a run ends it within the limit, too."""
        self._phases.enter(f"ending after {type(exception).__name__}")

    def _wait_for_step(self) -> None:
        self._phases.enter(f"reading the data of step {self._stream.number}", data=True)

    def _wait_for_validation(self, batch: int) -> None:
        self._phases.enter(f"reading the data of validation batch {batch}", data=True)
