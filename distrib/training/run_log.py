"""What of a run goes to the log of ``--logger``, and when."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.callbacks import Callback

from distrib.config.experiment import dump_experiment, stored_options
from distrib.config.learning import Learning, Train
from distrib.runtime.processes import Processes
from distrib.stream.batches import StepBatch
from distrib.training.learner import Learner
from distrib.training.loggers import Log, ShownLine, open_log
from distrib.training.loop_state import steps_done
from distrib.training.models import network_input_of
from distrib.training.shown_lines import Readings, ShownLines

if TYPE_CHECKING:
    from distrib.training.setup import PreparedRun

_FLUSH_SECONDS = 5.0
"""Reading a loss waits for the device, so losses are read a few seconds at a time."""


def is_logged(step: int) -> bool:
    """Whether the figures of a step, from 1, go to the log: all of the first 1,000, then every 10th …

    So a run has at most 900 for each power of ten, and the same ones however often it is resumed.
    """
    thinning: int = 10 ** max(0, len(str(step)) - 3)
    return step % thinning == 0


class RunLog(Callback):
    """Sends learning rate, loss and lines a second of steps, and scores and ``shown`` lines of validations.

    Every process has one, for what they have read of the lines is known to rank zero only if all tell it;
    ``open_log`` opens the log at rank zero and gives None elsewhere.
    """

    def __init__(
        self, open_log: Callable[[], Log | None], *, shown: ShownLines | None, processes: Processes
    ) -> None:
        self._open_log = open_log
        self._shown = shown
        self._processes = processes
        self._log: Log | None = None
        self._read: dict[int, tuple[str, str]] = {}
        self._images: dict[int, npt.NDArray[np.uint8] | None] = {}
        self._pending: list[tuple[int, dict[str, float], torch.Tensor]] = []
        self._flushed = self._ended = time.monotonic()
        self._lines, self._seconds = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training begins or goes on, so that there is something to log."""
        self._log = self._open_log()
        self._ended = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Note the step, and log what has gathered every few seconds."""
        assert isinstance(pl_module, Learner)
        now, facts = time.monotonic(), pl_module.facts
        self._seconds += now - self._ended
        self._ended = now
        if self._log is None or facts is None:
            return
        self._lines += facts.lines
        step = batch.number + 1
        if is_logged(step):
            figures = {"lrate": facts.lrate, "lines_per_second": self._lines / max(self._seconds, 1e-9)}
            self._pending.append((step, figures, facts.loss))
            self._lines, self._seconds = 0, 0.0
        if now - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What lies between two epochs is nobody's time."""
        self._ended = time.monotonic()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask for the lines to show."""
        if self._shown is not None:
            _readings_of(pl_module).lines = frozenset(self._shown.lines)
            _readings_of(pl_module).texts.clear()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each process tells what it has read of them."""
        if self._shown is not None:
            self._read = {}
            for texts in self._processes.gather(_readings_of(pl_module).texts):
                self._read |= texts

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the scores, and the lines."""
        assert isinstance(pl_module, Learner)
        self._flush()
        if self._log is not None:
            scores = {"train_loss": pl_module.mean_loss, **pl_module.scores}
            self._log.validation(steps_done(trainer), scores, self._shown_lines())
        self._ended = time.monotonic()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What a checkpoint holds must be in the log."""
        self._flush()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing stays behind."""
        self._flush()
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The steps before an error are what is asked for after it; losses on a device may be lost."""
        with suppress(RuntimeError):
            self._flush()
        self._close()

    def _flush(self) -> None:
        if self._log is not None and self._pending:
            self._log.steps(
                [(step, {**figures, "loss": float(loss)}) for step, figures, loss in self._pending]
            )
        self._pending = []
        self._flushed = time.monotonic()

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _shown_lines(self) -> list[ShownLine]:
        if self._shown is None:
            return []
        found = []
        for number, line in enumerate(self._shown.lines, start=1):
            if line not in self._images:
                self._images[line] = self._shown.image(line)
            image = self._images[line]
            if image is not None and line in self._read:
                truth, prediction = self._read[line]
                found.append(ShownLine(number=number, image=image, truth=truth, prediction=prediction))
        return found


def run_log(
    run: PreparedRun, *, environ: Mapping[str, str], on_failure: Callable[[str], None]
) -> list[Callback]:
    """The log that a run's options ask for, at this process; empty without one.

    ``environ`` may have variables of Weights & Biases; ``on_failure`` gets a sentence if the log fails.
    """
    options = run.options
    if options.pl_logger is None:
        return []
    shown = None
    if isinstance(options, Train) and options.log_images:
        network_input = network_input_of(run.model, padding=options.padding)
        shown = ShownLines.chosen(options.log_images, run.held, run.sets.validation, network_input)
    stored = stored_options(options)

    def opened() -> Log | None:
        if not run.processes.topology.first:
            return None
        return open_log(
            options,
            options.checkpoint_path,
            experiment=dump_experiment(run.globals_, options.command, stored),
            resumed=None if run.resume_from is None else int(run.training.state_dict()["number"]),
            same=_as_begun(stored) == _as_begun(run.options_then),
            environ=environ,
            on_failure=on_failure,
        )

    return [RunLog(opened, shown=shown, processes=run.processes)]


def _as_begun(options: Learning | None) -> Learning | None:
    """Options without those that a run is only begun with."""
    if options is None:
        return None
    without = dataclasses.replace(options, load=None)
    return dataclasses.replace(without, codec=None) if isinstance(without, Train) else without


def _readings_of(module: pl.LightningModule) -> Readings:
    """Where a module that reads lines keeps what it has read."""
    readings: Any = getattr(module, "readings", None)
    assert isinstance(readings, Readings)
    return readings
