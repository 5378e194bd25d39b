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
    return texts_of(model, *network_scores(model, batch))


def network_scores(model: RecognitionModel, batch: LineBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw scores (N, L, 1, W) of a batch's lines and the time steps of each, int64 (N,) on the CPU.

    A line too narrow to reach the network's output has none; where all are, the network does not run.
    """
    wide_enough = model.network.output_width(batch.widths) >= 1
    if wide_enough.all():
        return _scores(model, batch.images, batch.widths)
    steps = torch.zeros_like(batch.widths)
    if not wide_enough.any():
        return batch.images.new_zeros((len(steps), model.network.num_classes, 1, 0)).float(), steps
    chosen = wide_enough.nonzero().flatten()
    read, read_steps = _scores(model, batch.images[chosen.to(batch.images.device)], batch.widths[chosen])
    steps[chosen] = read_steps
    scores = read.new_zeros((len(steps), *read.shape[1:]))
    scores[chosen.to(read.device)] = read
    return scores, steps


def texts_of(model: RecognitionModel, scores: torch.Tensor, widths: torch.Tensor) -> list[str]:
    """The best path's text of each line, from raw scores (N, L, 1, W) and the time steps of each (N,)."""
    decoded = greedy_decode(scores.squeeze(2), widths)
    return [model.codec.decode_labels(labels) for labels in decoded]


def _scores(
    model: RecognitionModel, images: torch.Tensor, widths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    network: torch.nn.Module = model.network
    scores, steps = network(network_values(images, dtype_of(network)), widths)
    return scores, steps
