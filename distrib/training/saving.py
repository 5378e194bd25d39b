"""When a run writes checkpoints, and what stands in them besides tensors."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.errors import InputError, KetosError, PeerError
from distrib.runtime.checkpoint_store import CheckpointStore, Kind
from distrib.runtime.checkpoints import ABORT, STATE_KEY, checkpoint_name, model_state, step_name
from distrib.runtime.processes import Processes
from distrib.stream.batches import StepBatch
from distrib.stream.loader import TrainingLoader
from distrib.training.callbacks import Bookkeeping
from distrib.training.recognition import RecognitionModule, StopRequested


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
        self._saved = -1
        self._saved_at = time.monotonic()
        self._kind: Kind = "validation"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where the run stands is the position that it was resumed at."""
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
        assert isinstance(pl_module, RecognitionModule)
        self._position = self._stream.state_dict()
        number = int(self._position["number"])
        first = self._processes.topology.first
        if first and self._minutes and time.monotonic() - self._saved_at > 60 * self._minutes:
            pl_module.wants_checkpoint = True
        due = pl_module.checkpoint_due or (self._steps and number % self._steps == 0)
        interval = trainer.val_check_batch if trainer.check_val_every_n_epoch is None else None
        validates = isinstance(interval, int) and (batch_idx + 1) % interval == 0
        if due and not batch.last and not validates:
            self._save(trainer, "interval")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save under the name of the score."""
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What an epoch did after its last validation is kept as well."""
        if self._saved < int(self._position["number"]):
            self._save(trainer, "interval")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Keep what was done since the last checkpoint where the state is one between two steps."""
        assert isinstance(pl_module, RecognitionModule)
        if self._saved == int(self._position["number"]) or trainer.state.stage != "train":
            return
        if isinstance(exception, StopRequested):
            self._save(trainer, "stop")
        elif pl_module.settled and not isinstance(exception, InputError | PeerError):
            self._save_alone(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add model description, scores, stopping counters and position to Lightning's state."""
        assert isinstance(pl_module, RecognitionModule)
        if self._kind in ("stop", "abort"):
            # The step that was broken off counts for nothing.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for part in ("total", "current"):
                progress[part] = dict.fromkeys(progress[part], progress[part]["completed"])
        score = self._bookkeeping.score
        checkpoint[STATE_KEY] = {
            "model": model_state(pl_module.model),
            "score": score,
            "stopping": self._bookkeeping.stopping_state,
            "stream": self._position,
            "skipped": [pl_module.skipped_steps, pl_module.skipped_in_row],
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
        assert isinstance(pl_module, RecognitionModule)
        state = checkpoint[STATE_KEY]
        pl_module.skipped_steps, pl_module.skipped_in_row = state["skipped"]
        pl_module.proof = state["proof"]
        self._bookkeeping.load(state["score"], state["stopping"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if self._stream.begins_anew(state["stream"]):
            # The loader starts an epoch, and Lightning must not wait for the rest of the broken one.
            progress["current"] = dict.fromkeys(progress["current"], 0)
        elif state["stream"]["step"] == 0 and progress["current"]["completed"]:
            # Lightning takes an epoch for done by the length of the next one, which may be another.
            progress["current"] = dict.fromkeys(progress["current"], len(self._stream))

    def _save(self, trainer: pl.Trainer, kind: Kind) -> None:
        self._kind = kind
        number = int(self._position["number"])
        name = step_name(number)
        if kind == "validation":
            name = checkpoint_name(trainer.current_epoch, self._bookkeeping.score)
        trainer.save_checkpoint(self._store.directory / name)
        self._saved, self._saved_at = number, time.monotonic()

    def _save_alone(self, trainer: pl.Trainer, module: RecognitionModule) -> None:
        """Rank zero may be the only one left, and writes what it holds."""
        if module.keeping.sharded and self._processes.several:
            return
        if not self._processes.topology.first:
            return
        module.keeping.alone = True
        self._kind = "abort"
        try:
            trainer.save_checkpoint(self._store.directory / ABORT)
        except (KetosError, OSError):
            return  # what ended the run is what its user must read
