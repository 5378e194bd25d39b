"""What happens in a run, told as it happens: first batch, validations, steps that changed nothing, end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.stream.batches import StepBatch
from distrib.training.interruption import StopRequested
from distrib.training.learner import Learner
from distrib.training.loop_state import steps_done

OnEvent = Callable[[str, dict[str, Any]], None]
"""Takes the kind of an event and its facts in plain types."""


class RunEvents(Callback):
    """Tells of the run's events; rank zero alone has one."""

    def __init__(self, on_event: OnEvent) -> None:
        self._tell = on_event
        self._first = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """The first batch has come."""
        if self._first:
            self._first = False
            self._tell("first_batch", {"step": batch.number, "epoch": batch.epoch})

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """A step that changed nothing is worth a line."""
        assert isinstance(pl_module, Learner)
        if pl_module.facts is not None and pl_module.facts.skipped:
            facts = {"step": batch.number, "epoch": batch.epoch, "in_row": pl_module.skipped_in_row}
            self._tell("bad_step", facts)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The scores."""
        assert isinstance(pl_module, Learner)
        facts = {"epoch": trainer.current_epoch, "step": steps_done(trainer), **pl_module.scores}
        self._tell("validation", facts)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Why the run ends before its time; of one that was asked to end it is told when it has saved."""
        if not isinstance(exception, StopRequested):
            reason = f"{type(exception).__name__}: {exception}".removesuffix(": ").splitlines()[0]
            self._tell("error", {"step": steps_done(trainer), "reason": reason[:500]})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The run has come to its end."""
        self._tell("stop", {"step": steps_done(trainer), "epoch": trainer.current_epoch})
