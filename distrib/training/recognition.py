"""Recognition training as a Lightning module: CTC loss over whole global steps, greedy decoding, accuracy."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
import numpy as np
import torch

from distrib.config.sections import Train
from distrib.errors import KetosError, RunError
from distrib.model.weights import RecognitionModel
from distrib.runtime.processes import Processes
from distrib.runtime.strategies.base import StateKeeping
from distrib.stream.batches import BadLine, LineBatch, StepBatch
from distrib.training.decoding import ctc_losses, dtype_of, network_scores, network_values, texts_of
from distrib.training.interruption import Interruption, StopRequest
from distrib.training.last_good import last_good
from distrib.training.metrics import ErrorCounts
from distrib.training.optimization import make_optimizer
from distrib.training.proof import take_proof

BadLines = dict[tuple[Literal["training", "validation"], int], str]
"""Why a line of a collection could not be used, each line once however many epochs met it."""


class StopRequested(Exception):
    """A process of the job was asked to end; raised at the same step by all, with the same ``request``."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(request)
        self.request = request


_FAILED_SAVES = 3
"""Failed saves in a row after which a run is not worth going on."""

_FEW_LINES = 200
"""A share of unusable lines means something from this many lines on; before, only the epoch's end counts."""


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """A global step over all processes: lines trained on, unusable ones, columns with and without padding.

    ``loss`` is the mean over its lines, on the device; ``used`` and ``unused`` are this process's lines.
    ``skipped`` is True where the gradient was not finite, so that nothing was learned.
    """

    lines: int
    bad: int
    columns: int
    padded_columns: int
    loss: torch.Tensor
    used: list[int]
    unused: list[int]
    skipped: bool


class RecognitionModule(pl.LightningModule):
    """Trains the network of ``model``, one global step a ``training_step``.

    A step's gradient is that of the mean loss over all its lines, whichever process holds them and in
    however many micro-batches. ``facts`` are those of the last step; ``validation`` holds the error counts
    of the last validation over all processes, ``mean_loss`` the loss since the one before it.
    """

    def __init__(self, model: RecognitionModel, options: Train, *, processes: Processes, seed: int) -> None:
        super().__init__()
        # Micro-batches, their sum over processes and steps without any line are ours to arrange.
        self.automatic_optimization = False
        self.model = model
        self.options = options
        # Weights files are read for inference; Lightning leaves that mode as it is.
        self.network = model.network.train()
        self.validation = ErrorCounts()
        self.bad_lines: BadLines = {}
        self.mean_loss = float("nan")
        self.facts: StepFacts | None = None
        self.interruption = Interruption()
        """What asks this process to end; told to all with the next step."""
        self.wants_checkpoint = False
        """Whether this process finds it time for a checkpoint; told to all with the next step."""
        self.checkpoint_due = False
        """Whether one did, in the step under way."""
        self.settled = True
        """Whether the state is that after the last step, with what it has done on record at every process,
        so that a checkpoint can be made of it by rank zero alone."""
        self.skipped_steps, self.skipped_in_row = 0, 0
        self.proof: dict[str, Any] | None = None
        """What the network makes of a few validation lines, from the last validation."""
        self.computing: tuple[int, int] | None = None
        """Lines and columns of the micro-batch under way."""
        self._processes = processes
        self._seed = seed
        self._loss_sum: torch.Tensor | float = 0.0
        self._trained, self._ever_trained = 0, False
        self._epoch_bad, self._epoch_lines, self._whole_epoch = 0, 0, False
        self._held_bad, self._held = 0, 0

    def training_step(self, batch: StepBatch, batch_index: int) -> None:
        """One optimizer step on the mean over the global step's lines of the negative log-likelihood of
        their labels (Graves 2006). Raises StopRequested, at every process, where one was asked to end."""
        micro_batches = [self._without_narrow(each) for each in batch.micro_batches]
        for each in micro_batches:
            self._note_bad("training", each)
        used = [line for each in micro_batches for line in each.lines.tolist()]
        unused = [bad.line for each in micro_batches for bad in each.bad]
        lines, bad, columns, padded = self._agree([len(used), len(unused), *_columns(micro_batches)])
        loss_sum, learned = torch.zeros((), device=self.device), True
        if lines:
            # Dropout follows from the step alone: nothing about it has to be kept or replayed.
            torch.manual_seed(self._step_seed(batch))
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            loss_sum = self._processes.sum_tensor(self._gather_gradient(micro_batches, lines))
            self.settled = False
            learned = self.keeping.update(optimizer, clip=self.options.gradient_clip_val)
        self._count_skipped(learned)
        if learned:
            self._loss_sum = self._loss_sum + loss_sum
            self._trained += lines
        self._ever_trained |= lines > 0
        self.facts = StepFacts(
            lines=lines,
            bad=bad,
            columns=columns,
            padded_columns=padded,
            loss=loss_sum / max(lines, 1),
            used=used,
            unused=unused,
            skipped=not learned,
        )
        self._refuse_rubbish(batch, self.facts)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient of the whole step where it had to be unscaled first."""
        if self.keeping.scaled and self.options.gradient_clip_val:
            self.clip_gradients(
                optimizer,
                gradient_clip_val=self.options.gradient_clip_val,
                gradient_clip_algorithm="norm",
            )

    @property
    def keeping(self) -> StateKeeping:
        """The strategy of the run."""
        strategy: Any = self.trainer.strategy
        assert isinstance(strategy, StateKeeping)
        return strategy

    def on_validation_start(self) -> None:
        """Settle the loss since the last validation; NaN where no step has been learned from since.

        Raises RunError where it is not finite or nothing was trained on: the model would be worthless.
        StopRequested as in a step.
        """
        self._agree([])
        if not self._ever_trained:
            self._stop(
                "None of the training lines could be read; look at the data with `ketos inspect --verify`."
            )
        self.mean_loss = self.running_loss() if self._trained else float("nan")
        if self._trained and not math.isfinite(self.mean_loss):
            self._stop(
                f"The loss is no longer a number in epoch {self.current_epoch + 1}; lessen --lrate, and go "
                f"on from a checkpoint in {self.options.checkpoint_path}."
            )
        self.validation, self.proof = ErrorCounts(), None
        self._held_bad, self._held = 0, 0

    def validation_step(self, batch: LineBatch, batch_index: int) -> None:
        """Add the errors of a batch's lines. Raises StopRequested as a step does: validations take long."""
        self._agree([])
        self._note_bad("validation", batch)
        self._held_bad += len(batch.bad)
        self._held += len(batch.bad) + len(batch.lines)
        if self.keeping.sharded and not bool((self.network.output_width(batch.widths) >= 1).any()):
            self._nothing()
        if not len(batch.lines):
            return
        self.computing = _size(batch)
        scores, widths = network_scores(self.model, batch)
        self.computing = None
        if self.proof is None and self._processes.topology.first:
            self.proof = take_proof(
                self.model, batch, scores=scores, widths=widths, precision=str(self.trainer.precision)
            )
        for truth, prediction in zip(batch.texts, texts_of(self.model, scores, widths), strict=True):
            self.validation.add(truth, prediction)

    def running_loss(self) -> float:
        """Mean loss of the lines trained on since the last validation; waits for the device."""
        return float(self._loss_sum) / max(self._trained, 1)

    def on_validation_epoch_end(self) -> None:
        """Sum the errors of all processes; log loss, character and word accuracy (at most 1), named as
        kraken names them.

        Raises RunError, at every process, where too many lines could not be read for them to mean something.
        """
        bad, lines, *counts = self._processes.sum(
            [self._held_bad, self._held, *self.validation.to_vector().tolist()]
        )
        self.validation = ErrorCounts.from_vector(np.asarray(counts, dtype=np.int64))
        self._share_bad_lines()
        if bad == lines or bad > self.options.max_bad_fraction * max(lines, _FEW_LINES):
            self._stop_for_bad("validation", f"{bad:.0f} of {lines:.0f} validation lines could not be used")
        self.log("train_loss", self.mean_loss, rank_zero_only=True)
        self.log("val_accuracy", self.validation.accuracy, rank_zero_only=True)
        self.log("val_word_accuracy", self.validation.word_accuracy, rank_zero_only=True)
        # What follows puts the scores on record, and they must not be there twice.
        self.settled = False
        self._loss_sum, self._trained = 0.0, 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer that the options name."""
        return make_optimizer(self.network.parameters(), self.options)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Images and labels go to the device; widths stay, packed sequences want them on the CPU."""
        if isinstance(batch, StepBatch):
            return batch._replace(micro_batches=[_on_device(each, device) for each in batch.micro_batches])
        return _on_device(batch, device)

    def _gather_gradient(self, micro_batches: Sequence[LineBatch], lines: int) -> torch.Tensor:
        """Backpropagate this process's part of the step's loss; returns its sum over the part's lines.

        Processes send each other gradients once, with the last micro-batch; one without lines takes part
        with weight zero. Where a forward pass needs all processes, so does each micro-batch.
        """
        loss_sum = torch.zeros((), device=self.device)
        if not self.keeping.sharded:
            micro_batches = [each for each in micro_batches if len(each.lines)]
        # Gradients are averaged over processes, and the mean wanted is that over lines.
        weight = self._processes.topology.world_size / lines
        for number, batch in enumerate(micro_batches, start=1):
            self.computing = _size(batch)
            with self.keeping.synchronized(number == len(micro_batches)):
                loss = self._loss(batch) if len(batch.lines) else self._nothing()
                self.manual_backward(loss * weight)
            loss_sum += loss.detach()
        self.computing = None
        if not micro_batches:
            self.manual_backward(self._nothing())
        return loss_sum

    def _loss(self, batch: LineBatch) -> torch.Tensor:
        """The CTC loss summed over the lines of a micro-batch."""
        images = network_values(batch.images, dtype_of(self.network))
        scores, widths = self.network(images, batch.widths)
        return ctc_losses(scores, widths, batch).sum()

    def _nothing(self) -> torch.Tensor:
        """Zero, depending on every parameter."""
        _, channels, height, _ = self.network.input_shape
        width = 8
        while int(self.network.output_width(width)) < 1:
            width *= 2
        blank = torch.zeros((1, channels, height or width, width), device=self.device)
        scores: torch.Tensor = self.network(blank.to(dtype_of(self.network)), torch.tensor([width]))[0]
        return scores.sum() * 0.0

    def counts(self) -> dict[str, Any]:
        """What is counted from step to step, for a checkpoint; waits for the device."""
        return {
            "skipped": [self.skipped_steps, self.skipped_in_row],
            "learned": [float(self._loss_sum), self._trained, self._ever_trained],
            "epoch": [self._epoch_bad, self._epoch_lines, self._whole_epoch],
        }

    def load_counts(self, counts: dict[str, Any]) -> None:
        """Go on counting where a checkpoint left off."""
        self.skipped_steps, self.skipped_in_row = counts["skipped"]
        self._loss_sum, self._trained, self._ever_trained = counts["learned"]
        self._epoch_bad, self._epoch_lines, self._whole_epoch = counts["epoch"]

    def _agree(self, numbers: Sequence[int]) -> list[int]:
        """The sums of ``numbers`` over all processes, which tell each other with them what else there is.

        Raises StopRequested, at every process, where one was asked to end.
        """
        store = self.keeping.store
        told = [*numbers, *self.interruption.votes(), self.wants_checkpoint, *store.votes()]
        *sums, wanted, written, failed = self._processes.sum(told)
        # All have come this far, so all have on record what they did before.
        self.settled = True
        store.settle(int(written), int(failed))
        if store.failures >= _FAILED_SAVES:
            self._stop(
                f"{_FAILED_SAVES} checkpoints in a row could not be written to "
                f"{self.options.checkpoint_path}; see that there is room, and go on with `ketos train "
                f"--resume {self.options.checkpoint_path}`."
            )
        request = self.interruption.agreed(sums[len(numbers) :])
        if request is not None:
            raise StopRequested(request)
        self.checkpoint_due, self.wants_checkpoint = wanted > 0, False
        return [int(number) for number in sums[: len(numbers)]]

    def _count_skipped(self, learned: bool) -> None:
        """Raise RunError, at every process, where no step has been learned from for too long."""
        self.skipped_in_row = 0 if learned else self.skipped_in_row + 1
        self.skipped_steps += not learned
        if self.skipped_in_row >= self.options.max_bad_steps:
            with suppress(KetosError):  # what could not be saved is not what ends the run
                self.keeping.store.finish()
            good = last_good(self.options.checkpoint_path) if self._processes.topology.first else None
            way_out = f"go on with `ketos train --resume {good}`" if good else "start again"
            self._stop(
                f"{self.skipped_in_row} steps in a row had no finite loss and gradient, the last in epoch "
                f"{self.current_epoch + 1}; lessen --lrate and {way_out}."
            )

    def _step_seed(self, batch: StepBatch) -> int:
        numbers = (self._seed, batch.epoch, batch.step, self._processes.topology.rank)
        digest = blake2b(struct.pack("<4Q", *numbers), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _refuse_rubbish(self, batch: StepBatch, facts: StepFacts) -> None:
        """Raise RunError, at every process, where too many lines of the epoch cannot be used."""
        if batch.step == 0:
            self._epoch_bad, self._epoch_lines, self._whole_epoch = 0, 0, True
        self._epoch_bad += facts.bad
        self._epoch_lines += facts.lines + facts.bad
        # Of an epoch that was resumed near its end the few lines left say little.
        known = batch.last and self._whole_epoch
        seen = self._epoch_lines if known else max(self._epoch_lines, _FEW_LINES)
        if self._epoch_bad > self.options.max_bad_fraction * seen:
            self._share_bad_lines()
            self._stop_for_bad(
                "training", f"{self._epoch_bad} of {self._epoch_lines} lines of this epoch could not be used"
            )

    def _share_bad_lines(self) -> None:
        for others in self._processes.gather(self.bad_lines):
            self.bad_lines |= others

    def _stop_for_bad(self, where: Literal["training", "validation"], what: str) -> NoReturn:
        example = next(reason for (place, _), reason in self.bad_lines.items() if place == where)
        self._stop(
            f"{what} (such as: {example}); look at the data with `ketos inspect --verify`, or allow more "
            "with --max-bad-fraction."
        )

    def _stop(self, reason: str) -> NoReturn:
        """End all processes, which come here together, each knowing why: nothing is to be rescued."""
        self.settled = False
        self._processes.stop(RunError(reason))

    def _without_narrow(self, batch: LineBatch) -> LineBatch:
        """The batch without lines that came out narrower than was estimated, too narrow for their text."""
        fits = self.network.output_width(batch.widths) >= batch.required_steps.clamp(min=1)
        if fits.all():
            return batch
        narrow = [BadLine(line, "too narrow for its text (CTC)") for line in batch.lines[~fits].tolist()]
        return batch.select(fits)._replace(bad=batch.bad + narrow)

    def _note_bad(self, where: Literal["training", "validation"], batch: LineBatch) -> None:
        self.bad_lines |= {(where, bad.line): bad.reason for bad in batch.bad}


def _on_device(batch: LineBatch, device: torch.device) -> LineBatch:
    return batch._replace(
        images=batch.images.to(device, non_blocking=True), labels=batch.labels.to(device, non_blocking=True)
    )


def _size(batch: LineBatch) -> tuple[int, int]:
    """Lines, and columns with padding."""
    return len(batch.lines), int(batch.images.shape[3])


def _columns(micro_batches: Sequence[LineBatch]) -> tuple[int, int]:
    """Columns of the lines, and of the batches they are padded to."""
    real = sum(int(each.widths.sum()) for each in micro_batches)
    return real, sum(len(each.lines) * each.images.shape[3] for each in micro_batches)
