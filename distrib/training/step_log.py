"""The steps of a run on record: loss, lines, padding, times, one JSON object a step."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from distrib.runtime.directory.json_lines import JsonLines
from distrib.stream.batches import StepBatch
from distrib.training.learner import Learner
from distrib.training.step import StepFacts

_FLUSH_SECONDS = 2.0
"""Reading a loss waits for the device, so losses are read a few seconds at a time."""


class StepLog(Callback):
    """Writes ``steps.jsonl``: for each global step its number in the run, epoch, mean loss, lines, unusable
    lines, learning rate, real over padded columns, whether it was skipped for want of a finite gradient,
    seconds, and seconds waited for data.

    All but the times are over all processes. A step that was done again after a kill stands there twice,
    the later one being the one that counts.
    """

    def __init__(self, directory: Path) -> None:
        self._lines = JsonLines(directory / "steps.jsonl", sync=False)
        self._pending: list[tuple[dict[str, Any], torch.Tensor]] = []
        self._flushed = time.monotonic()
        self._ended = time.monotonic()
        self._began = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """The data are there."""
        self._began = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Note the step, and write what has gathered every few seconds."""
        assert isinstance(pl_module, Learner)
        now = time.monotonic()
        if pl_module.facts is not None:
            row = _row(batch, pl_module.facts)
            row |= {"seconds": round(now - self._ended, 4), "wait": round(self._began - self._ended, 4)}
            self._pending.append((row, pl_module.facts.loss))
        self._ended = now
        if now - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not waiting for data."""
        self._ended = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is not waiting for data."""
        self._ended = time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing stays behind."""
        self._flush()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What a checkpoint holds must be on record."""
        self._flush()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The steps before an error are what is asked for after it; losses on a device may be lost."""
        with suppress(RuntimeError):
            self._flush()

    def _flush(self) -> None:
        for row, loss in self._pending:
            self._lines.append(row | {"loss": float(loss)})
        self._pending = []
        self._flushed = time.monotonic()


def _row(batch: StepBatch, facts: StepFacts) -> dict[str, Any]:
    return {
        "step": batch.number,
        "epoch": batch.epoch,
        "lines": facts.lines,
        "bad": facts.bad,
        "lrate": facts.lrate,
        "fill": round(facts.columns / max(facts.padded_columns, 1), 4),
        **({"skipped": True} if facts.skipped else {}),
    }
