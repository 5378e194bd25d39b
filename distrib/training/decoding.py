"""From a batch to losses and texts: what training, validation and testing share, without Lightning."""

from __future__ import annotations

import torch
import torch.nn.functional as functional

from distrib.model.ctc import greedy_decode
from distrib.model.weights import RecognitionModel
from distrib.stream.batches import LineBatch


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
    labels = batch.labels
    if torch.are_deterministic_algorithms_enabled() and log_probabilities.is_cuda:
        # CTC on a GPU adds up gradients in no fixed order, and torch refuses it then.
        log_probabilities, labels = log_probabilities.cpu(), labels.cpu()
    losses = functional.ctc_loss(
        log_probabilities, labels, widths, batch.label_lengths, reduction="none", zero_infinity=True
    )
    return losses.to(scores.device)


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
