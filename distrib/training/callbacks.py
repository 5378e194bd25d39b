"""What happens around validations: scores recorded, checkpoints written, training stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.runtime.checkpoints import LAST, STATE_KEY, checkpoint_name, model_state, prune_checkpoints
from distrib.stream.loader import TrainingLoader
from distrib.training.recognition import RecognitionModule
from distrib.training.stopping import EarlyStopping

_KEEP = 10


class Bookkeeping(Callback):
    """After each validation: metrics on record, checkpoints in the run directory, stopping decided.

    ``last.ckpt`` is the newest state, ``checkpoint_<epoch>-<score>.ckpt`` the best ten. Every process
    comes to the same decisions from the same sums; rank zero alone writes.
    """

    def __init__(self, directory: Path, *, stopping: EarlyStopping | None, stream: TrainingLoader) -> None:
        self.directory = directory
        self.stopping = stopping
        self._stream = stream
        self._score = float("-inf")
        self._started = time.time()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last epoch ends in a validation, whether or not it is the turn of one."""
        if trainer.max_epochs == trainer.current_epoch + 1 and trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record, decide, save."""
        assert isinstance(pl_module, RecognitionModule)
        counts = pl_module.validation
        self._score = counts.accuracy
        scores = {"val_accuracy": counts.accuracy, "val_word_accuracy": counts.word_accuracy}
        pl_module.model.metrics.append([trainer.current_epoch, scores])
        if self.stopping:
            # A validation inside an epoch has not completed it.
            done = trainer.current_epoch + int(trainer.is_last_batch)
            trainer.should_stop = self.stopping.update(counts.accuracy, epochs_done=done)
        if trainer.is_global_zero:
            self._record(trainer, {**scores, "train_loss": pl_module.mean_loss})
        trainer.save_checkpoint(self.directory / checkpoint_name(trainer.current_epoch, self._score))
        trainer.save_checkpoint(self.directory / LAST)
        if trainer.is_global_zero:
            prune_checkpoints(self.directory, keep=_KEEP)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add model description, score, stopping counters and stream to Lightning's state."""
        assert isinstance(pl_module, RecognitionModule)
        checkpoint[STATE_KEY] = {
            "model": model_state(pl_module.model),
            "score": self._score,
            "stopping": self.stopping.state_dict() if self.stopping else None,
            "stream": self._stream.state_dict(),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue counters where the checkpoint left them."""
        state = checkpoint[STATE_KEY]
        if self.stopping and state["stopping"]:
            self.stopping.load_state_dict(state["stopping"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if self._stream.begins_anew(state["stream"]):
            # The loader starts an epoch, and Lightning must not wait for the rest of the broken one.
            progress["current"] = dict.fromkeys(progress["current"], 0)
        elif state["stream"]["step"] == 0:
            # Lightning takes an epoch for done by the length of the next one, which may be another.
            progress["current"] = dict.fromkeys(progress["current"], len(self._stream))

    def _record(self, trainer: pl.Trainer, scores: dict[str, float]) -> None:
        row = {"time": round(time.time() - self._started, 3), "epoch": trainer.current_epoch}
        row |= {"step": trainer.global_step, **scores}
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
