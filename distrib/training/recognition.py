"""Recognition training as a Lightning module: CTC loss, greedy decoding, character accuracy."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch

from distrib.config.sections import Train
from distrib.errors import RunError
from distrib.model.weights import RecognitionModel
from distrib.stream.batches import BadLine, LineBatch
from distrib.training.decoding import ctc_losses, dtype_of, network_values, recognize
from distrib.training.metrics import ErrorCounts
from distrib.training.optimization import make_optimizer

BadLines = dict[tuple[Literal["training", "validation"], int], str]
"""Why a line of a collection could not be used, each line once however many epochs met it."""


class RecognitionModule(pl.LightningModule):
    """Trains the network of ``model``.

    ``validation`` holds the error counts of the last validation, ``mean_loss`` the loss since it began.
    """

    def __init__(self, model: RecognitionModel, options: Train) -> None:
        super().__init__()
        self.model = model
        self.options = options
        # Weights files are read for inference; Lightning leaves that mode as it is.
        self.network = model.network.train()
        self.validation = ErrorCounts()
        self.bad_lines: BadLines = {}
        self.mean_loss = float("nan")
        self._loss_sum: torch.Tensor | float = 0.0
        self._trained = 0

    def training_step(self, batch: LineBatch, batch_index: int) -> torch.Tensor | None:
        """Mean over the batch's lines of the negative log-likelihood of their labels (Graves 2006)."""
        batch = self._without_narrow(batch)
        self._note_bad("training", batch)
        if not len(batch.lines):
            return None
        scores, widths = self.network(network_values(batch.images, dtype_of(self.network)), batch.widths)
        loss = ctc_losses(scores, widths, batch).mean()
        self._loss_sum = self._loss_sum + loss.detach() * len(batch.lines)
        self._trained += len(batch.lines)
        return loss

    def on_validation_start(self) -> None:
        """Settle the loss since the last validation.

        Raises RunError where it is not finite or nothing was trained on: the model would be worthless.
        """
        if not self._trained:
            raise RunError("None of the training lines could be read; check the data with `ketos test`.")
        self.mean_loss = self.running_loss()
        self._loss_sum, self._trained = 0.0, 0
        if not torch.isfinite(torch.tensor(self.mean_loss)):
            raise RunError(
                f"The loss is no longer a number in epoch {self.current_epoch + 1}; lessen --lrate, and go "
                f"on from a checkpoint in {self.options.checkpoint_path}."
            )
        self.validation = ErrorCounts()

    def validation_step(self, batch: LineBatch, batch_index: int) -> None:
        """Add the errors of a batch's lines."""
        self._note_bad("validation", batch)
        if len(batch.lines):
            predictions = recognize(self.model, batch)
            for truth, prediction in zip(batch.texts, predictions, strict=True):
                self.validation.add(truth, prediction)

    def running_loss(self) -> float:
        """Mean loss of the lines trained on since the last validation; waits for the device."""
        return float(self._loss_sum) / max(self._trained, 1)

    def on_validation_epoch_end(self) -> None:
        """Log loss, character and word accuracy (at most 1), named as kraken names them."""
        self.log("train_loss", self.mean_loss)
        self.log("val_accuracy", self.validation.accuracy)
        self.log("val_word_accuracy", self.validation.word_accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer that the options name."""
        return make_optimizer(self.network.parameters(), self.options)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Images and labels go to the device; widths stay, packed sequences want them on the CPU."""
        return batch._replace(
            images=batch.images.to(device, non_blocking=True),
            labels=batch.labels.to(device, non_blocking=True),
        )

    def _without_narrow(self, batch: LineBatch) -> LineBatch:
        """The batch without lines that came out narrower than was estimated, too narrow for their text."""
        fits = self.network.output_width(batch.widths) >= batch.required_steps.clamp(min=1)
        if fits.all():
            return batch
        narrow = [BadLine(line, "too narrow for its text (CTC)") for line in batch.lines[~fits].tolist()]
        return batch.select(fits)._replace(bad=batch.bad + narrow)

    def _note_bad(self, where: Literal["training", "validation"], batch: LineBatch) -> None:
        self.bad_lines |= {(where, bad.line): bad.reason for bad in batch.bad}
