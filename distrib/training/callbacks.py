"""What happens at validations: scores recorded, training stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.runtime.directory.json_lines import JsonLines
from distrib.stream.batches import StepBatch
from distrib.stream.loader import TrainingLoader
from distrib.training.learner import Learner
from distrib.training.schedules import Place
from distrib.training.stopping import Annealing, EarlyStopping


class Bookkeeping(Callback):
    """After each validation: metrics on record, stopping decided.

    Every process comes to the same decisions from the same sums; rank zero alone writes. ``score`` is the
    last validation's accuracy, at most 1.
    """

    def __init__(
        self, directory: Path, *, stopping: EarlyStopping | Annealing | None, stream: TrainingLoader
    ) -> None:
        self._metrics = JsonLines(directory / "metrics.jsonl")
        self.stopping = stopping
        self._stream = stream
        self.score = float("-inf")
        self._started = time.time()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that had stopped early does not train on when it is resumed."""
        epochs_done = int(self._stream.state_dict()["epoch"])
        if self.stopping and self.stopping.finished(epochs_done=epochs_done):
            trainer.should_stop = True
        self._end_in_validation(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last epoch ends in a validation, whether or not it is the turn of one."""
        self._end_in_validation(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """The last step of all is validated, too, where an epoch's steps leave a rest."""
        if batch.last and trainer.max_epochs == trainer.current_epoch + 1:
            # No step follows that this could be wrong for.
            trainer.val_check_batch = batch_idx + 1

    def _end_in_validation(self, trainer: pl.Trainer) -> None:
        # An epoch that is gone on with does not start for Lightning.
        if trainer.max_epochs == trainer.current_epoch + 1 and trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record and decide."""
        assert isinstance(pl_module, Learner)
        self.score = pl_module.score
        pl_module.model.metrics.append([trainer.current_epoch, dict(pl_module.scores)])
        pl_module.validated(self._place(pl_module))
        if self.stopping:
            # A validation inside an epoch has not completed it.
            done = trainer.current_epoch + int(trainer.is_last_batch)
            trainer.should_stop = self.stopping.update(self.score, epochs_done=done)
        if trainer.is_global_zero:
            self._record(trainer, {**pl_module.scores, "train_loss": pl_module.mean_loss})

    def _place(self, learner: Learner) -> Place:
        """The step that comes next."""
        at = self._stream.state_dict()
        steps = len(self._stream)
        return Place(
            epoch=int(at["epoch"]),
            step=int(at["step"]),
            steps=steps,
            number=int(at["number"]),
            samples=learner.samples,
        )

    @property
    def stopping_state(self) -> dict[str, Any] | None:
        """The counters of early stopping, for a checkpoint."""
        return self.stopping.state_dict() if self.stopping else None

    def load(self, score: float, stopping: dict[str, Any] | None) -> None:
        """Continue counters where a checkpoint left them."""
        self.score = score
        if self.stopping and stopping:
            self.stopping.load_state_dict(stopping)

    def _record(self, trainer: pl.Trainer, scores: dict[str, float]) -> None:
        row = {"time": round(time.time() - self._started, 3), "epoch": trainer.current_epoch}
        row |= {"step": int(self._stream.state_dict()["number"]), **scores}
        self._metrics.append(row)
