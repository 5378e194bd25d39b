"""Label smoothing for CTC: a share of the loss asks for equal probabilities of all labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniformity_losses(scores: Tensor, widths: Tensor) -> Tensor:
    """How far each line's probabilities are from equal ones, float32 (N,).

    ``scores`` (N, L, 1, W) are raw, of which a line's first ``widths`` int64 (N,) columns count. It is the
    sum over them of the divergence KL(uniform || probabilities), as of Kim et al. 2018 ("Improved training
    for online end-to-end speech recognition systems"). The gradient of (1 - s) CTC + s times this is, in
    every column of a line of any length, that of a cross-entropy with targets of which s is uniform and the
    rest what CTC aligns: so a sum, as CTC's is, and no mean.
    """
    labels, columns = scores.shape[1], scores.shape[3]
    values = scores.squeeze(2).float()
    divergence = values.logsumexp(1) - values.mean(1) - math.log(labels)
    beyond = torch.arange(columns) >= widths[:, None]
    return divergence.masked_fill(beyond.to(scores.device, non_blocking=True), 0.0).sum(1)


def smoothed(losses: Tensor, scores: Tensor, widths: Tensor, share: float) -> Tensor:
    """CTC losses (N,) of lines with these scores of which ``share`` is given to equal probabilities."""
    return (1.0 - share) * losses + share * uniformity_losses(scores, widths)
