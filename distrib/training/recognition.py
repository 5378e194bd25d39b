"""Recognition training: CTC loss over whole global steps, greedy decoding, accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distrib.config.learning import Train
from distrib.model.taps import FeatureTap
from distrib.model.weights import RecognitionModel
from distrib.runtime.processes import Processes
from distrib.stream.batches import BadLine, LineBatch, StepBatch
from distrib.training.averaging import averaged_network, drop_averages, keep_averages
from distrib.training.decoding import ctc_losses, dtype_of, network_scores, network_values, texts_of
from distrib.training.freezing import Backbone
from distrib.training.label_smoothing import smoothed
from distrib.training.learner import Learner
from distrib.training.metrics import ErrorCounts
from distrib.training.optimization import make_optimizer
from distrib.training.proof import take_proof
from distrib.training.schedules import Place
from distrib.training.shortcut import SHORTCUT, shortcut_head
from distrib.training.shown_lines import Readings
from distrib.training.span_masks import hide_spans


class RecognitionModule(Learner):
    """Learns to read: the loss of a line is the negative log-likelihood of its labels (Graves 2006).

    ``validation`` holds the error counts of the last validation over all processes, ``readings`` what this
    process has read of the lines that somebody asked for, ``judged`` the model that is validated: with
    averaged weights where the options ask for them, during validations.
    """

    options: Train

    def __init__(
        self,
        model: RecognitionModel,
        options: Train,
        *,
        processes: Processes,
        seed: int,
        interval: int | None = None,
    ) -> None:
        tap = FeatureTap(model.network) if options.shortcut or options.span_masks else None
        head = shortcut_head(tap, model.network.num_classes) if tap and options.shortcut else None
        super().__init__(
            model,
            options,
            processes=processes,
            seed=seed,
            interval=interval,
            extra={SHORTCUT: head} if head else {},
        )
        self.validation = ErrorCounts()
        self.readings = Readings()
        self.judged = model
        self._tap, self._head = tap, head
        frozen_for = options.freeze_backbone
        self._backbone = Backbone(model.network, frozen_for=frozen_for) if frozen_for else None
        self._augment = None
        if options.augment:
            from distrib.training.augmentation import Augmentation

            self._augment = Augmentation(options.augment_strength)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer that the options name; the backbone has a group of its own if it is frozen first."""
        trained = [each for each in self.trained.parameters() if each.requires_grad]
        groups = [{"params": trained}] if self._backbone is None else self._backbone.groups(trained)
        optimizer = make_optimizer(groups, self.options)
        if self.options.ema:
            keep_averages(optimizer, self.options.ema)
        return optimizer

    def on_train_start(self) -> None:
        """The checkpoint has been loaded."""
        if not self.options.ema:
            drop_averages(self.keeping)

    def training_step(self, batch: StepBatch, batch_index: int) -> None:
        """As of every learner; a frozen backbone has nothing to remember of it."""
        frozen = self._frozen(self.samples)
        super().training_step(batch, batch_index)
        if frozen is not None:
            frozen.forget(self.keeping)

    def _set_rates(self, optimizer: Any, place: Place, lrate: float) -> None:
        super()._set_rates(optimizer, place, lrate)
        if (frozen := self._frozen(place.samples)) is not None:
            frozen.still(optimizer)

    def _frozen(self, samples: int) -> Backbone | None:
        """The backbone, where it does not learn in a step before which ``samples`` lines were done."""
        return self._backbone if self._backbone is not None and self._backbone.is_frozen(samples) else None

    def loss(self, batch: LineBatch, place: Place) -> torch.Tensor:
        """The CTC loss summed over the lines of a micro-batch, and what the options add to it."""
        images = network_values(batch.images, dtype_of(self.network))
        if self._augment is not None:
            images = self._augment(images, batch.widths, batch.lines, seed=self.seed, epoch=place.epoch)
        frozen = self._frozen(place.samples)
        shortcut: list[tuple[torch.Tensor, torch.Tensor]] = []

        def change(features: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            if self._head is not None:
                seen = features if frozen is None else features.detach()
                shortcut.append((self._head(seen), columns))
            share, lines = self.options.span_masks, batch.lines
            return hide_spans(features, columns, lines, seed=self.seed, epoch=place.epoch, share=share)

        with ExitStack() as stack:
            if self._tap is not None:
                stack.enter_context(self._tap.changing(change))
            if frozen is not None:
                stack.enter_context(frozen.held())
            scores, widths = self.network(images, batch.widths)
        loss = self._losses(scores, widths, batch).sum()
        for seen_scores, columns in shortcut:
            loss = loss + self.options.shortcut * self._losses(seen_scores, columns, batch).sum()
        return loss if frozen is None else loss + frozen.absence(self.keeping)

    def _losses(self, scores: torch.Tensor, widths: torch.Tensor, batch: LineBatch) -> torch.Tensor:
        """The loss (N,) of each line with these raw scores (N, L, 1, W), CTC's but for the smoothing."""
        losses, share = ctc_losses(scores, widths, batch), self.options.label_smoothing
        return smoothed(losses, scores, widths, share) if share else losses

    def usable(self, batch: LineBatch) -> LineBatch:
        """The batch without lines that came out too narrow for their text."""
        fits = self.network.output_width(batch.widths) >= batch.required_steps.clamp(min=1)
        if fits.all():
            return batch
        narrow = [BadLine(line, "too narrow for its text (CTC)") for line in batch.lines[~fits].tolist()]
        return batch.select(fits)._replace(bad=batch.bad + narrow)

    def begin_validation(self) -> None:
        self.validation = ErrorCounts()
        if self.options.ema:
            averaged = averaged_network(self.network, self.keeping, self.processes)
            self.judged = replace(self.model, network=averaged)

    def blank_pass(self) -> None:
        # The averaged network is whole at each process: its passes are nobody else's business.
        if self.judged is self.model:
            super().blank_pass()

    def validate(self, batch: LineBatch) -> None:
        """Add the errors of a batch's lines."""
        scores, widths = network_scores(self.judged, batch)
        if self.proof is None and self.processes.topology.first:
            self.proof = take_proof(
                self.judged, batch, scores=scores, widths=widths, precision=str(self.trainer.precision)
            )
        predictions = texts_of(self.judged, scores, widths)
        self.readings.note(batch.lines.tolist(), batch.texts, predictions)
        for truth, prediction in zip(batch.texts, predictions, strict=True):
            self.validation.add(truth, prediction)

    def validation_counts(self) -> list[float]:
        counts: list[float] = self.validation.to_vector().tolist()
        return counts

    def end_validation(self, counts: npt.NDArray[np.float64]) -> None:
        """Character and word accuracy, at most 1."""
        self.judged = self.model
        self.validation = ErrorCounts.from_vector(counts.astype(np.int64))
        self.scores = {
            "val_accuracy": self.validation.accuracy,
            "val_word_accuracy": self.validation.word_accuracy,
        }

    def score_of(self, scores: Mapping[str, float]) -> float:
        """The character accuracy."""
        return scores["val_accuracy"]

    def describe_score(self, score: float) -> str:
        return f"accuracy {score:.2%}"

    def describe(self, scores: Mapping[str, float]) -> str:
        return f"accuracy {scores['val_accuracy']:.2%}, words {max(scores['val_word_accuracy'], 0):.2%}"
