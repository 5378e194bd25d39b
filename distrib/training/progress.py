"""Live progress of training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from distrib.stream.batches import StepBatch
from distrib.training.learner import Learner

_BAR_INTERVAL = 0.3
_PLAIN_INTERVAL = 30.0
"""Seconds between looks at the progress: on a terminal, and in a log."""


class TrainingProgress(Callback):
    """Loss, lines/s, accuracy and time left; ``total_epochs`` None where there is no end in sight."""

    def __init__(self, *, total_epochs: int | None, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        self._total_epochs = total_epochs
        self._best = 0.0
        self._lines = 0
        self._seconds = 0.0
        self._step_started = 0.0
        self._last_shown = time.monotonic()
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run has had its best already."""
        assert isinstance(pl_module, Learner)
        known = (pl_module.score_of(scores) for _, scores in pl_module.model.metrics)
        self._best = max(known, default=0.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the epoch's bar."""
        self._lines, self._seconds = 0, 0.0
        self._step_started = time.monotonic()
        if self.console.is_terminal:
            self._open_bar(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Move on by one batch."""
        now = time.monotonic()
        self._seconds += now - self._step_started
        self._step_started = now
        assert isinstance(pl_module, Learner)
        self._lines += 0 if pl_module.facts is None else pl_module.facts.lines
        # Reading the loss waits for the device: only as often as somebody can look.
        if now - self._last_shown < (_BAR_INTERVAL if self._bar is not None else _PLAIN_INTERVAL):
            return
        self._last_shown = now
        status = self._status(pl_module.running_loss())
        if self._bar is not None:
            self._bar.update(self._task, completed=batch_idx + 1, status=status)
        else:
            done, total = batch_idx + 1, trainer.num_training_batches
            left = (total - done) * self._seconds / max(done, 1)
            self.console.print(
                f"{self._stage(trainer)}: step {done} of {total}, {status}, {clock(left)} left",
                highlight=False,
                soft_wrap=True,
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is on the clock of nobody's lines per second."""
        if self._bar is not None:
            self._bar.update(self._task, status="validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One line for each validation that stays on the screen."""
        assert isinstance(pl_module, Learner)
        self._step_started = time.monotonic()
        better = pl_module.score >= self._best
        self._best = max(self._best, pl_module.score)
        mark = "best so far" if better else f"best {pl_module.describe_score(self._best)}"
        console = self._bar.console if self._bar is not None else self.console
        scores = pl_module.describe(pl_module.scores)
        console.print(
            f"{self._stage(trainer)}: {scores}, {self._status(pl_module.mean_loss)}, {mark}",
            highlight=False,
            soft_wrap=True,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the epoch's bar."""
        self._close_bar()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was."""
        self._close_bar()

    def _status(self, loss: float) -> str:
        speed = self._lines / self._seconds if self._seconds else 0.0
        return f"loss {loss:.3f}, {speed:.1f} lines/s"

    def _stage(self, trainer: pl.Trainer) -> str:
        total = "" if self._total_epochs is None else f" of {self._total_epochs}"
        return f"epoch {trainer.current_epoch + 1}{total}"

    def _open_bar(self, trainer: pl.Trainer) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bar = Progress(
            *columns,
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            self._stage(trainer), total=int(trainer.num_training_batches), status="reading the first batch"
        )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
