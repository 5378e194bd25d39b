"""What recognition training and pretraining share: whole global steps, over all processes."""

from __future__ import annotations

import math
import struct
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NoReturn

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distrib.config.learning import Learning
from distrib.errors import KetosError, RunError
from distrib.model.weights import RecognitionModel
from distrib.runtime.processes import Processes
from distrib.runtime.strategies.base import StateKeeping
from distrib.stream.batches import LineBatch, StepBatch
from distrib.training.decoding import dtype_of
from distrib.training.interruption import Interruption, StopRequested
from distrib.training.last_good import last_good
from distrib.training.optimization import make_optimizer
from distrib.training.schedules import LearningRates, Place, base_rate
from distrib.training.step import StepFacts, blank_line, columns_of, on_device, size_of
from distrib.training.trained import Trained
from distrib.training.unusable_lines import UnusableLines, Where

_FAILED_SAVES = 3
"""Failed saves in a row after which a run is not worth going on."""


class Learner(pl.LightningModule):
    """Trains the network of ``model``, one global step a ``training_step``.

    A step's gradient is that of the mean loss over all its units (lines, or what ``units`` counts), whichever
    process holds them and in however many micro-batches. ``facts`` are those of the last step; ``scores``
    hold what the last validation found over all processes, ``score`` what the best model has most of, and
    ``mean_loss`` the loss since the validation before it.

    ``trained`` is what the strategy trains: the network, and ``extra`` modules that help it learn. Their
    names are those of the parameters in checkpoints.
    """

    def __init__(
        self,
        model: RecognitionModel,
        options: Learning,
        *,
        processes: Processes,
        seed: int,
        interval: int | None = None,
        extra: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """``interval`` are the steps between validations inside an epoch; None: where there are none."""
        super().__init__()
        # Micro-batches, their sum over processes and steps without any line are ours to arrange.
        self.automatic_optimization = False
        self.model = model
        self.options = options
        self.seed = seed
        # Weights files are read for inference; Lightning leaves that mode as it is.
        self.network = model.network.train()
        self.trained: nn.Module = Trained(self.network, extra or {})
        self.rates = LearningRates(
            options,
            base=base_rate(options, global_lines=options.global_batch_size or 0),
            warmup_unit=options.warmup_unit,
            interval=interval,
        )
        self.scores: dict[str, float] = {}
        self.score = float("-inf")
        self.unusable = UnusableLines(limit=options.max_bad_fraction)
        self.mean_loss = float("nan")
        self.facts: StepFacts | None = None
        self.samples = 0
        """Lines of all steps so far, over all processes."""
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
        self.processes = processes
        self._loss_sum: torch.Tensor | float = 0.0
        self._trained, self._ever_trained = 0, False

    @property
    def together(self) -> bool:
        """Whether a loss takes all processes, so that each makes as many of them as the others."""
        return False

    # What a task is made of.

    @abstractmethod
    def loss(self, batch: LineBatch, place: Place) -> torch.Tensor:
        """The loss summed over the units of a micro-batch, which has lines."""

    @abstractmethod
    def usable(self, batch: LineBatch) -> LineBatch:
        """The batch without lines that came out narrower than was estimated; they are in its ``bad``."""

    def units(self, batch: LineBatch, place: Place) -> int:
        """How many units of the loss a micro-batch has: its lines, unless a task counts others."""
        return len(batch.lines)

    @abstractmethod
    def begin_validation(self) -> None:
        """Forget the last one."""

    @abstractmethod
    def validate(self, batch: LineBatch) -> None:
        """Count a batch that has lines."""

    @abstractmethod
    def validation_counts(self) -> list[float]:
        """What this process has counted, to be summed over all."""

    @abstractmethod
    def end_validation(self, counts: npt.NDArray[np.float64]) -> None:
        """Set ``scores`` from the sums."""

    @abstractmethod
    def score_of(self, scores: Mapping[str, float]) -> float:
        """The ``score`` of a validation with these ``scores``; higher is better, at most 1."""

    @abstractmethod
    def describe_score(self, score: float) -> str:
        """A ``score`` by its name."""

    @abstractmethod
    def describe(self, scores: Mapping[str, float]) -> str:
        """Scores in a few words."""

    # Training.

    def training_step(self, batch: StepBatch, batch_index: int) -> None:
        """One optimizer step on the mean loss over the global step's units.

        Raises StopRequested, at every process, where one was asked to end.
        """
        place = Place(
            epoch=batch.epoch, step=batch.step, steps=batch.steps, number=batch.number, samples=self.samples
        )
        micro_batches = [self.usable(each) for each in batch.micro_batches]
        for each in micro_batches:
            self.unusable.note("training", each)
        used = [line for each in micro_batches for line in each.lines.tolist()]
        unused = [bad.line for each in micro_batches for bad in each.bad]
        own_units = sum(self.units(each, place) for each in micro_batches if len(each.lines))
        numbers = [len(used), len(unused), *columns_of(micro_batches), own_units]
        lines, bad, columns, padded, units = self._agree(numbers)
        loss_sum, learned = torch.zeros((), device=self.device), True
        lrate = self.rates.rate(place)
        if units:
            # Dropout follows from the step alone: nothing about it has to be kept or replayed.
            torch.manual_seed(self._step_seed(batch))
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self._set_rates(optimizer, place, lrate)
            loss_sum = self.processes.sum_tensor(self._gather_gradient(micro_batches, place, units))
            self.settled = False
            learned = self.keeping.update(optimizer, clip=self.options.gradient_clip_val)
        self._count_skipped(learned)
        if learned:
            self._loss_sum = self._loss_sum + loss_sum
            self._trained += units
        self._ever_trained |= units > 0
        self.samples += lines
        self.facts = StepFacts(
            lines=lines,
            bad=bad,
            columns=columns,
            padded_columns=padded,
            loss=loss_sum / max(units, 1),
            lrate=lrate,
            used=used,
            unused=unused,
            skipped=not learned,
        )
        self._refuse("training", self.unusable.excess_of_training(batch, lines=lines, bad=bad))

    def _set_rates(self, optimizer: Any, place: Place, lrate: float) -> None:
        """The optimizer's settings for a step follow from options and place, whatever a checkpoint said."""
        momentum = self.rates.momentum(place)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lrate, self.options.weight_decay
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum

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

    # Validation.

    def on_validation_start(self) -> None:
        """Settle the loss since the last validation; NaN where no step has been learned from since.

        Raises RunError where it is not finite or nothing was trained on: the model would be worthless.
        StopRequested as in a step.
        """
        self._agree([])
        if not self._ever_trained:
            self._stop(
                "None of the training lines could be used; look at the data with `ketos inspect --verify`."
            )
        self.mean_loss = self.running_loss() if self._trained else float("nan")
        if self._trained and not math.isfinite(self.mean_loss):
            self._stop(
                f"The loss is no longer a number in epoch {self.current_epoch + 1}; lessen --lrate, and go "
                f"on from a checkpoint in {self.options.checkpoint_path}."
            )
        self.proof = None
        self.unusable.begin_validation()
        self.begin_validation()

    def validation_step(self, batch: LineBatch, batch_index: int) -> None:
        """Count a batch's lines. Raises StopRequested as a step does: validations take long."""
        self._agree([])
        self.unusable.count_validation(batch)
        if self.keeping.sharded and not bool((self.network.output_width(batch.widths) >= 1).any()):
            self.blank_pass()
        if not len(batch.lines):
            return
        self.computing = size_of(batch)
        self.validate(batch)
        self.computing = None

    def on_validation_epoch_end(self) -> None:
        """Sum what all processes have counted.

        Raises RunError, at every process, where too many lines could not be read for them to mean something.
        """
        own = [*self.unusable.validation_counts, *self.validation_counts()]
        bad, lines, *counts = self.processes.sum(own)
        self._share_unusable()
        self._refuse("validation", self.unusable.excess_of_validation(bad, lines), shared=True)
        self.end_validation(np.asarray(counts, dtype=np.float64))
        self.score = self.score_of(self.scores)
        # What follows puts the scores on record, and they must not be there twice.
        self.settled = False
        self._loss_sum, self._trained = 0.0, 0

    def validated(self, place: Place) -> None:
        """The score is settled, and ``place`` is the step that comes next."""
        self.rates.validated(self.score, place)

    def running_loss(self) -> float:
        """Mean loss of the units trained on since the last validation; waits for the device."""
        return float(self._loss_sum) / max(self._trained, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer that the options name."""
        trained = [each for each in self.trained.parameters() if each.requires_grad]
        return make_optimizer([{"params": trained}], self.options)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Images and labels go to the device; widths stay, packed sequences want them on the CPU."""
        if isinstance(batch, StepBatch):
            return batch._replace(micro_batches=[on_device(each, device) for each in batch.micro_batches])
        return on_device(batch, device)

    def _gather_gradient(self, micro_batches: Sequence[LineBatch], place: Place, units: int) -> torch.Tensor:
        """Backpropagate this process's part of the step's loss; returns its sum over the part's units.

        Processes send each other gradients once, with the last micro-batch; one without lines takes part
        with weight zero. Where a forward pass needs all processes, so does each micro-batch.
        """
        loss_sum = torch.zeros((), device=self.device)
        if not (self.keeping.sharded or self.together):
            micro_batches = [each for each in micro_batches if len(each.lines)]
        # Gradients are averaged over processes, and the mean wanted is that over units.
        weight = self.processes.topology.world_size / units
        for number, batch in enumerate(micro_batches, start=1):
            self.computing = size_of(batch)
            with self.keeping.synchronized(number == len(micro_batches)):
                loss = self.loss(batch, place) if len(batch.lines) else self._nothing(place)
                self.manual_backward(loss * weight)
            loss_sum += loss.detach()
        self.computing = None
        if not micro_batches:
            self.manual_backward(self._nothing(place))
        return loss_sum

    def _nothing(self, place: Place) -> torch.Tensor:
        """Zero, depending on every parameter that is trained."""
        return self.loss(self._blank(), place) * 0.0

    def blank_pass(self) -> None:
        """A pass through the network that means nothing, where all processes make one together."""
        blank = self._blank()
        self.network(blank.images.to(dtype_of(self.network)), blank.widths)

    def _blank(self) -> LineBatch:
        return blank_line(self.network, width=self.blank_width(), device=self.device)

    def blank_width(self) -> int:
        """Columns of a line that the loss can be computed of."""
        width = 8
        while int(self.network.output_width(width)) < 1:
            width *= 2
        return width

    def counts(self) -> dict[str, Any]:
        """What is counted from step to step, for a checkpoint; waits for the device."""
        return {
            "skipped": [self.skipped_steps, self.skipped_in_row],
            "learned": [float(self._loss_sum), self._trained, self._ever_trained],
            "epoch": self.unusable.counts(),
            "samples": self.samples,
            "rates": self.rates.state_dict(),
        }

    def load_counts(self, counts: dict[str, Any]) -> None:
        """Go on counting where a checkpoint left off."""
        self.skipped_steps, self.skipped_in_row = counts["skipped"]
        self._loss_sum, self._trained, self._ever_trained = counts["learned"]
        self.unusable.load_counts(counts["epoch"])
        self.samples = counts["samples"]
        self.rates.load_state_dict(counts["rates"])

    def _agree(self, numbers: Sequence[int]) -> list[int]:
        """The sums of ``numbers`` over all processes, which tell each other with them what else there is.

        Raises StopRequested, at every process, where one was asked to end.
        """
        store = self.keeping.store
        told = [*numbers, *self.interruption.votes(), self.wants_checkpoint, *store.votes()]
        *sums, wanted, written, failed = self.processes.sum(told)
        # All have come this far, so all have on record what they did before.
        self.settled = True
        store.settle(int(written), int(failed))
        if store.failures >= _FAILED_SAVES:
            self._stop(
                f"{_FAILED_SAVES} checkpoints in a row could not be written to "
                f"{self.options.checkpoint_path}; see that there is room, and "
                f"{self.options.way_on(self.options.checkpoint_path)}."
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
            good = last_good(self.options.checkpoint_path) if self.processes.topology.first else None
            way_out = self.options.way_on(good) if good else "start again"
            self._stop(
                f"{self.skipped_in_row} steps in a row had no finite loss and gradient, the last in epoch "
                f"{self.current_epoch + 1}; lessen --lrate and {way_out}."
            )

    def _step_seed(self, batch: StepBatch) -> int:
        numbers = (self.seed, batch.epoch, batch.step, self.processes.topology.rank)
        digest = blake2b(struct.pack("<4Q", *numbers), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _refuse(self, where: Where, excess: str | None, *, shared: bool = False) -> None:
        """Raise RunError, at every process, where too many lines cannot be used."""
        if excess is None:
            return
        if not shared:
            self._share_unusable()
        self._stop(self.unusable.sentence(where, excess))

    def _share_unusable(self) -> None:
        for others in self.processes.gather(self.unusable.known):
            self.unusable.known |= others

    def _stop(self, reason: str) -> NoReturn:
        """End all processes, which come here together, each knowing why: nothing is to be rescued."""
        self.settled = False
        self.processes.stop(RunError(reason))
