"""What happens around validations: scores recorded, checkpoints written, training stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from distrib.runtime.checkpoints import LAST, STATE_KEY, checkpoint_name, model_state, prune_checkpoints
from distrib.training.recognition import RecognitionModule
from distrib.training.stopping import EarlyStopping

_KEEP = 10


class Bookkeeping(Callback):
    """After each validation: metrics on record, checkpoints in the run directory, stopping decided.

    ``last.ckpt`` is the newest state, ``checkpoint_<epoch>-<score>.ckpt`` the best ten. ``validations``
    counts those of this process; a run without any has nothing to export.
    """

    def __init__(self, directory: Path, *, stopping: EarlyStopping | None) -> None:
        self.directory = directory
        self.stopping = stopping
        self.validations = 0
        self._random_state: torch.Tensor | None = None
        self._started = time.time()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record, save, decide."""
        if trainer.sanity_checking or not isinstance(pl_module, RecognitionModule):
            return
        self.validations += 1
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        scores = {
            "val_accuracy": accuracy,
            "val_word_accuracy": float(trainer.callback_metrics["val_word_accuracy"]),
        }
        pl_module.model.metrics.append([trainer.current_epoch, scores])
        self._record(trainer, scores)
        if self.stopping and self.stopping.update(accuracy, epochs_done=trainer.current_epoch + 1):
            trainer.should_stop = True
        self._save(trainer, accuracy)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add model description, stopping counters and random state to Lightning's state."""
        assert isinstance(pl_module, RecognitionModule)
        checkpoint[STATE_KEY] = {
            "model": model_state(pl_module.model),
            "stopping": self.stopping.state_dict() if self.stopping else None,
            "random": {"torch": torch.get_rng_state()},
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue counters and random state where the checkpoint left them."""
        assert isinstance(pl_module, RecognitionModule)
        state = checkpoint[STATE_KEY]
        pl_module.model.metrics[:] = state["model"]["metrics"]
        if self.stopping and state["stopping"]:
            self.stopping.load_state_dict(state["stopping"])
        self._random_state = state["random"]["torch"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue the random state: late, since setting up draws from it."""
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)

    def _save(self, trainer: pl.Trainer, accuracy: float) -> None:
        path = self.directory / checkpoint_name(trainer.current_epoch, accuracy)
        trainer.save_checkpoint(path)
        trainer.save_checkpoint(self.directory / LAST)
        prune_checkpoints(self.directory, keep=_KEEP)

    def _record(self, trainer: pl.Trainer, scores: dict[str, float]) -> None:
        row = {"time": round(time.time() - self._started, 3), "epoch": trainer.current_epoch}
        row |= {"step": trainer.global_step, **scores}
        loss = trainer.callback_metrics.get("train_loss")
        if loss is not None:
            row["train_loss"] = float(loss)
        with (self.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
