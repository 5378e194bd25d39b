"""Recognition training as a Lightning module: CTC loss, greedy decoding, character accuracy."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as functional

from distrib.config.sections import Train
from distrib.model.ctc import greedy_decode
from distrib.model.weights import RecognitionModel
from distrib.stream.batches import BadLine, LineBatch
from distrib.training.metrics import ErrorCounts
from distrib.training.optimization import make_optimizer


class RecognitionModule(pl.LightningModule):
    """Trains the network of ``model``; ``validation`` holds the error counts of the last validation."""

    def __init__(self, model: RecognitionModel, options: Train) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.network = model.network
        self.validation = ErrorCounts()
        self.bad_lines: list[tuple[int, str]] = []

    def training_step(self, batch: LineBatch, batch_index: int) -> torch.Tensor | None:
        """Mean over the batch's lines of the negative log-likelihood of their labels (Graves 2006)."""
        batch = self._without_narrow(batch)
        self._note_bad(batch)
        if not len(batch.lines):
            return None
        scores, widths = self.network(network_values(batch.images, dtype_of(self.network)), batch.widths)
        loss = ctc_losses(scores, widths, batch).mean()
        self.log("train_loss", loss.detach(), batch_size=len(batch.lines), prog_bar=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Count errors anew."""
        self.validation = ErrorCounts()

    def validation_step(self, batch: LineBatch, batch_index: int) -> None:
        """Add the errors of a batch's lines."""
        self._note_bad(batch)
        if len(batch.lines):
            predictions = recognize(self.model, batch)
            for truth, prediction in zip(batch.texts, predictions, strict=True):
                self.validation.add(truth, prediction)

    def on_validation_epoch_end(self) -> None:
        """Log character and word accuracy in 0..1, kraken's ``val_accuracy`` and ``val_word_accuracy``."""
        self.log("val_accuracy", 1.0 - self.validation.cer)
        self.log("val_word_accuracy", 1.0 - self.validation.wer)

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

    def _note_bad(self, batch: LineBatch) -> None:
        self.bad_lines += [(bad.line, bad.reason) for bad in batch.bad]


def dtype_of(network: torch.nn.Module) -> torch.dtype:
    """The type that a network computes with outside autocast."""
    return next(network.parameters()).dtype


def network_values(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Images uint8 (N, C, H, W) as the network takes them: ``dtype`` in 0..1."""
    return images.to(dtype).div_(255)


def ctc_losses(scores: torch.Tensor, widths: torch.Tensor, batch: LineBatch) -> torch.Tensor:
    """CTC loss float32 (N,) of each line from raw scores (N, L, 1, W) and their widths (N,)."""
    # Log-probabilities in float32: half precision loses the sums over long lines.
    log_probabilities = scores.squeeze(2).float().log_softmax(1).permute(2, 0, 1)
    return functional.ctc_loss(
        log_probabilities, batch.labels, widths, batch.label_lengths, reduction="none", zero_infinity=True
    )


def recognize(model: RecognitionModel, batch: LineBatch) -> list[str]:
    """Greedily decoded text of each line of a batch, in the order of labels (display order).

    A line too narrow to reach the network's output is read as empty.
    """
    wide_enough = model.network.output_width(batch.widths) >= 1
    if not wide_enough.all():
        if not wide_enough.any():
            return [""] * len(batch.lines)
        read = iter(recognize(model, batch.select(wide_enough)))
        return [next(read) if wide else "" for wide in wide_enough.tolist()]
    scores, widths = model.network(network_values(batch.images, dtype_of(model.network)), batch.widths)
    decoded = greedy_decode(scores.squeeze(2), widths)
    return [model.codec.decode_labels(labels) for labels in decoded]
