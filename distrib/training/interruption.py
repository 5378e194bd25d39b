"""SIGTERM to one process ends the whole job at the end of a step, never in the middle of talking."""

from __future__ import annotations

import signal
import threading
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.runtime.directory.run_directory import RunDirectory
from distrib.training.recognition import RecognitionModule


class StopOnSignal(Callback):
    """Notes SIGTERM in the module, which tells the other processes with its next step.

    Lightning's own handler talks to the other processes from inside the signal, wherever they are: with
    several processes the job then hangs as often as it ends. So it is replaced once Lightning has set it.
    A run whose directory another has taken over ends in the same way.
    """

    def __init__(self, claimed: RunDirectory | None) -> None:
        self._claimed = claimed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Two runs must not write into one directory."""
        assert isinstance(pl_module, RecognitionModule)
        if self._claimed is not None and self._claimed.lease.lost:
            pl_module.interrupted = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signal; Lightning gives it back when it ends."""
        assert isinstance(pl_module, RecognitionModule)
        module = pl_module

        def note(*_: Any) -> None:
            module.interrupted = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, note)
