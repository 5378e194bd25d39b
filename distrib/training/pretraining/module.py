"""Pretraining: what stood in the hidden columns of a line is to be recognised among others."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distrib.config.learning import Pretrain
from distrib.model.resize import ctc_layer
from distrib.model.weights import RecognitionModel
from distrib.runtime.processes import Processes
from distrib.stream.batches import BadLine, LineBatch, StepBatch
from distrib.training.augmentation import Augmentation
from distrib.training.decoding import dtype_of, network_scores, network_values
from distrib.training.learner import Learner
from distrib.training.pretraining.collapse import Directions
from distrib.training.pretraining.collapse_warning import CollapseWarning
from distrib.training.pretraining.contrast import Contrast, against_pool, unit, within_lines
from distrib.training.pretraining.heads import MASK, PROJECTION, checked_tap, make_heads, output_size
from distrib.training.pretraining.masking import (
    TRAINING,
    VALIDATION,
    HiddenColumns,
    hide_columns,
    line_keys,
)
from distrib.training.pretraining.pool import share_columns
from distrib.training.proof import MOST_LINES, take_proof
from distrib.training.schedules import Place


class PretrainingModule(Learner):
    """Learns from images alone, as wav2vec 2.0 (Baevski et al. 2020) does from sound, without its codebook.

    The recurrent layers get the feature map with spans of columns hidden. At each hidden column, what comes
    out of the last layer before the output layer is to be more similar to what stood there, projected to as
    many channels, than to other hidden columns. The output layer, which has no alphabet yet, is not trained.
    A unit of the loss is a hidden column.

    Validation hides the same columns every time, and its negatives are of the line, whatever the options say.
    """

    options: Pretrain

    def __init__(
        self,
        model: RecognitionModel,
        options: Pretrain,
        *,
        processes: Processes,
        seed: int,
        interval: int | None = None,
    ) -> None:
        tap = checked_tap(model.network)
        heads = make_heads(model.network, tap, seed=seed)
        super().__init__(model, options, processes=processes, seed=seed, interval=interval, extra=heads)
        self._tap = tap
        self._mask, self._projection = heads[MASK], heads[PROJECTION]
        ctc_layer(model.network).requires_grad_(False)
        # Not what comes into the output layer: stage 3 of ZeRO would wait for a gradient of that layer.
        self._last = list(model.network.nn.children())[-2]
        self._augment = Augmentation(options.augment_strength) if options.augment else None
        self._hidden: dict[tuple[int, ...], HiddenColumns] = {}
        self._counts = torch.zeros(3, dtype=torch.float64)
        self._directions = Directions(1)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Warn of features that collapse."""
        return [CollapseWarning()] if self.processes.topology.first else []

    def training_step(self, batch: StepBatch, batch_index: int) -> None:
        """As of every learner, with masks of its own."""
        self._hidden = {}
        super().training_step(batch, batch_index)

    @property
    def together(self) -> bool:
        """Whether a loss takes all processes: all have negatives for each other."""
        return self.options.negatives == "all" and self.processes.several

    def units(self, batch: LineBatch, place: Place) -> int:
        """The columns to be predicted of a micro-batch."""
        return self._hide(batch, place).total

    def loss(self, batch: LineBatch, place: Place) -> Tensor:
        """The cross-entropy summed over the hidden columns of a micro-batch."""
        return self._loss(batch, self._hide(batch, place), place)

    def _nothing(self, place: Place) -> Tensor:
        blank = self._blank()
        hidden = self._hidden_of(blank, epoch=0, purpose=VALIDATION)
        # Others must not tell their columns from those of an empty line that there is not.
        hidden.counts.zero_()
        return self._loss(blank, hidden, place) * 0.0

    def usable(self, batch: LineBatch) -> LineBatch:
        """The batch without lines that came out narrower than a mask."""
        columns = self._tap.width(batch.widths)
        fits = columns >= self.options.mask_width
        if fits.all():
            return batch
        narrow = [
            BadLine(line, f"{width} columns wide, narrower than a mask")
            for line, width in zip(batch.lines[~fits].tolist(), columns[~fits].tolist(), strict=True)
        ]
        return batch.select(fits)._replace(bad=batch.bad + narrow)

    def blank_width(self) -> int:
        """Columns of a line in which something can be hidden."""
        width = super().blank_width()
        while int(self._tap.width(width)) < max(self.options.mask_width, 2):
            width *= 2
        return width

    def blank_pass(self) -> None:
        """A pass through network and heads that means nothing, where all processes make one together."""
        blank = self._blank()
        self._see(blank, self._hidden_of(blank, epoch=0, purpose=VALIDATION), blank.images)

    def begin_validation(self) -> None:
        self._counts = torch.zeros(3, dtype=torch.float64)
        self._directions = Directions(output_size(self.network))

    def validation_step(self, batch: LineBatch, batch_index: int) -> None:
        """As of every learner; with the first batch, some lines are kept to prove the export by."""
        super().validation_step(batch, batch_index)
        if batch_index == 0 and (self.keeping.sharded or self.processes.topology.first):
            self._prove(batch)

    def validate(self, batch: LineBatch) -> None:
        """Add the losses of a batch's hidden columns, and which way their targets point."""
        wide_enough = bool((self.network.output_width(batch.widths) >= 1).any())
        batch = self.usable(batch)
        self.unusable.note("validation", batch)
        if not len(batch.lines):
            if self.keeping.sharded and wide_enough:
                self.blank_pass()
            return
        hidden = self._hidden_of(batch, epoch=0, purpose=VALIDATION)
        images = network_values(batch.images, dtype_of(self.network))
        context, targets = self._see(batch, hidden, images)
        keys = line_keys(batch.lines, seed=self.seed, epoch=0, purpose=VALIDATION)
        with self._in_full():
            found = self._compare(context, targets, hidden, keys)
            own = hidden.real(self.device)
            sums = torch.stack([found.losses.sum(), found.right.sum().float()])
            self._directions.add(unit(targets)[own])
        # Converted on the CPU, since not every device has float64.
        self._counts[:2] += sums.cpu().double()
        self._counts[2] += hidden.total

    def validation_counts(self) -> list[float]:
        counts: list[float] = self._counts.tolist()
        return counts

    def end_validation(self, counts: npt.NDArray[np.float64]) -> None:
        """Cross-entropy in nats and accuracy of the choice, spread and effective rank of the targets."""
        losses, right, columns = counts.tolist()
        spread, rank = self._directions.measure(self.processes)
        guessing = math.log(1 + self.options.num_negatives)
        self.scores = {
            "val_ce": losses / columns if columns else guessing,
            "val_contrast_accuracy": right / max(columns, 1.0),
            "val_spread": spread,
            "val_rank": rank,
        }

    def score_of(self, scores: Mapping[str, float]) -> float:
        """The probability of the right choice, as a geometric mean over hidden columns."""
        return math.exp(-scores["val_ce"])

    def describe_score(self, score: float) -> str:
        return f"cross-entropy {abs(math.log(max(score, sys.float_info.min))):.4f}"

    def describe(self, scores: Mapping[str, float]) -> str:
        return (
            f"cross-entropy {scores['val_ce']:.4f}, {scores['val_contrast_accuracy']:.2%} told apart, spread "
            f"{scores['val_spread']:.3f}, rank {scores['val_rank']:.1f}"
        )

    def _hide(self, batch: LineBatch, place: Place) -> HiddenColumns:
        """The hidden columns of a micro-batch, which are drawn once a step."""
        lines = tuple(batch.lines.tolist())
        if lines not in self._hidden:
            self._hidden[lines] = self._hidden_of(batch, epoch=place.epoch, purpose=TRAINING)
        return self._hidden[lines]

    def _hidden_of(self, batch: LineBatch, *, epoch: int, purpose: int) -> HiddenColumns:
        return hide_columns(
            self._tap.width(batch.widths),
            batch.lines,
            seed=self.seed,
            epoch=epoch,
            probability=self.options.mask_prob,
            width=self.options.mask_width,
            purpose=purpose,
        )

    def _loss(self, batch: LineBatch, hidden: HiddenColumns, place: Place) -> Tensor:
        images = network_values(batch.images, dtype_of(self.network))
        if self._augment is not None:
            images = self._augment(images, batch.widths, batch.lines, seed=self.seed, epoch=place.epoch)
        context, targets = self._see(batch, hidden, images)
        keys = line_keys(batch.lines, seed=self.seed, epoch=place.epoch, purpose=TRAINING)
        with self._in_full():
            if self.options.negatives == "line":
                found = self._compare(context, targets, hidden, keys)
            else:
                found = self._compare_with_all(context, targets, hidden, keys)
            return found.losses.sum()

    def _see(self, batch: LineBatch, hidden: HiddenColumns, images: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts and targets (N, M, D) of hidden columns, in the type that the network computes with."""
        targets: list[Tensor] = []
        contexts: list[Tensor] = []

        def change(features: Tensor, _: Tensor) -> Tensor:
            targets.append(self._projection(hidden.gather(features)))
            changed: Tensor = self._mask(features, hidden.masks.to(features.device, non_blocking=True))
            return changed

        handle = self._last.register_forward_hook(lambda _, __, output: contexts.append(output[0]))
        try:
            with self._tap.changing(change):
                self.network(images.to(dtype_of(self.network)), batch.widths)
        finally:
            handle.remove()
        return hidden.gather(contexts[0]), targets[0]

    def _compare(self, context: Tensor, targets: Tensor, hidden: HiddenColumns, keys: Tensor) -> Contrast:
        return within_lines(
            context,
            targets,
            hidden.real(context.device),
            keys.to(context.device, non_blocking=True),
            negatives=self.options.num_negatives,
            temperature=self.options.logit_temp,
        )

    def _compare_with_all(
        self, context: Tensor, targets: Tensor, hidden: HiddenColumns, keys: Tensor
    ) -> Contrast:
        real = hidden.real(context.device)
        keys = keys.to(context.device, non_blocking=True)
        negatives = self.options.num_negatives
        pool, filled = share_columns(
            unit(targets), real, keys[:1], negatives=negatives, processes=self.processes
        )
        return against_pool(
            context,
            targets,
            real,
            keys,
            pool,
            filled=filled,
            negatives=negatives,
            temperature=self.options.logit_temp,
        )

    @contextmanager
    def _in_full(self) -> Iterator[None]:
        """Similarities and their sums are float32's business, whatever the network computes with."""
        with torch.autocast(self.device.type, enabled=False):
            yield

    def _prove(self, batch: LineBatch) -> None:
        """Keep what the network makes of the narrowest lines of a batch, with nothing hidden."""
        narrowest = torch.zeros(len(batch.lines), dtype=torch.bool)
        narrowest[torch.argsort(batch.widths, stable=True)[:MOST_LINES]] = True
        chosen = batch.select(narrowest)
        if not bool((self.network.output_width(chosen.widths) >= 1).any()):
            if self.keeping.sharded:
                super().blank_pass()
            return
        scores, widths = network_scores(self.model, chosen)
        if self.processes.topology.first:
            self.proof = take_proof(
                self.model, chosen, scores=scores, widths=widths, precision=str(self.trainer.precision)
            )
