"""When a run writes checkpoints, and what stands in them besides tensors."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.errors import InputError, KetosError, PeerError
from distrib.runtime.checkpoints.contents import STATE_KEY, model_state
from distrib.runtime.checkpoints.names import ABORT, checkpoint_name, step_name
from distrib.runtime.checkpoints.store import CheckpointStore, Kind
from distrib.runtime.processes import Processes
from distrib.stream.batches import StepBatch
from distrib.stream.loader import TrainingLoader
from distrib.training.callbacks import Bookkeeping
from distrib.training.interruption import StopRequested
from distrib.training.learner import Learner
from distrib.training.loop_state import loops_at, validation_follows


class Saving(Callback):
    """A checkpoint after each validation, every ``steps`` steps and ``minutes`` minutes (0: never), at an
    epoch's end, when the run is asked to stop, and when something unforeseen ends it.

    ``experiment`` is the resolved experiment and ``provenance`` what the exported file says of its making,
    both in plain types; they go into every checkpoint.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        processes: Processes,
        stream: TrainingLoader,
        bookkeeping: Bookkeeping,
        steps: int,
        minutes: float,
        experiment: str,
        provenance: dict[str, Any],
    ) -> None:
        self._store = store
        self._processes = processes
        self._stream = stream
        self._bookkeeping = bookkeeping
        self._steps, self._minutes = steps, minutes
        self._fixed = {"experiment": experiment, "provenance": provenance}
        self._position = stream.state_dict()
        self._validation_due = False
        self._begun = False
        self._saved = -1
        self._saved_at = time.monotonic()
        self._kind: Kind = "validation"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where the run stands is the position that it was resumed at."""
        self._begun = True
        self._position = self._stream.state_dict()
        self._saved = int(self._position["number"])
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: StepBatch,
        batch_idx: int,
    ) -> None:
        """Save where it is time, unless a validation or the end of the epoch comes next and does."""
        assert isinstance(pl_module, Learner)
        self._position = self._stream.state_dict()
        self._validation_due = validation_follows(trainer, batch_idx)
        if not self._processes.several:
            # What a step has done is on record; several processes have yet to tell each other.
            pl_module.settled = True
        number = int(self._position["number"])
        first = self._processes.topology.first
        if first and self._minutes and time.monotonic() - self._saved_at > 60 * self._minutes:
            pl_module.wants_checkpoint = True
        due = pl_module.checkpoint_due or (self._steps and number % self._steps == 0)
        # While nothing is learned nothing new is to be kept, and the last that was good must not go for it.
        due = due and not pl_module.skipped_in_row
        if due and not batch.last and not self._validation_due:
            self._save(trainer, "interval")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save under the name of the score."""
        self._validation_due = False
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What an epoch did after its last validation is kept as well."""
        if self._saved < int(self._position["number"]):
            self._save(trainer, "interval")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Keep what was done since the last checkpoint where the state is one between two steps."""
        assert isinstance(pl_module, Learner)
        # Before training began nothing was done, and a checkpoint may have been loaded by half.
        if not self._begun or self._saved == int(self._position["number"]):
            return
        if isinstance(exception, StopRequested):
            self._save(trainer, "stop")
        elif pl_module.settled and not isinstance(exception, InputError | PeerError):
            self._save_alone(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add model description, scores, stopping counters and position to Lightning's state."""
        assert isinstance(pl_module, Learner)
        # Where the run goes on follows from the position, not from what Lightning is doing at the moment.
        checkpoint["loops"] = {}
        score = self._bookkeeping.score
        checkpoint[STATE_KEY] = {
            "model": model_state(pl_module.model),
            "score": score,
            "stopping": self._bookkeeping.stopping_state,
            "stream": self._position,
            "validation_due": self._validation_due,
            "counts": pl_module.counts(),
            "proof": pl_module.proof,
            "facts": {
                "kind": self._kind,
                "step": int(self._position["number"]),
                "epoch": trainer.current_epoch,
                "score": score if self._kind == "validation" else None,
            },
            **self._fixed,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue where the checkpoint left off."""
        assert isinstance(pl_module, Learner)
        state = checkpoint[STATE_KEY]
        pl_module.load_counts(state["counts"])
        pl_module.proof = state["proof"]
        self._bookkeeping.load(state["score"], state["stopping"])
        # The stream stands where it goes on already, which is elsewhere if its data have changed.
        position = self._stream.state_dict()
        self._validation_due = bool(state["validation_due"]) and not self._stream.begins_anew(state["stream"])
        checkpoint["loops"] = {
            "fit_loop": loops_at(
                trainer,
                position,
                optimizer_steps=int(checkpoint["global_step"]),
                steps=len(self._stream),
                validate=self._validation_due,
            )
        }

    def _save(self, trainer: pl.Trainer, kind: Kind) -> None:
        module = trainer.lightning_module
        assert isinstance(module, Learner)
        # The clock that asked for this checkpoint may have asked again meanwhile.
        module.wants_checkpoint = False
        self._kind = kind
        number = int(self._position["number"])
        name = step_name(number)
        if kind == "validation":
            name = checkpoint_name(trainer.current_epoch, self._bookkeeping.score)
        trainer.save_checkpoint(self._store.directory / name)
        self._saved, self._saved_at = number, time.monotonic()

    def _save_alone(self, trainer: pl.Trainer, module: Learner) -> None:
        """Rank zero may be the only one left, and writes what it holds."""
        if module.keeping.sharded and self._processes.several:
            return
        if not self._processes.topology.first:
            return
        module.keeping.alone = True
        self._kind = "abort"
        try:
            trainer.save_checkpoint(self._store.directory / ABORT)
        except (KetosError, OSError, RuntimeError):
            return  # what ended the run is what its user must read; a device may be lost with it
