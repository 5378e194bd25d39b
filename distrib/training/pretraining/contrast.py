"""The contrastive loss of wav2vec 2.0 (Baevski et al. 2020): which of several columns is the hidden one?

For each hidden column what the network makes of its surroundings, the context, is compared with what stood
there, the target, and with the targets of other hidden columns, the negatives, by cosine similarity. The loss
is the cross-entropy of choosing the target. Columns that look alike, as empty paper does, cannot be told
apart: negatives equal to the target do not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from distrib.training.pretraining.drawing import draw_below

_EQUAL, _DIFFERENT = 1e-3, 1e-2
"""Targets this far from each other, in units of their length, are the same; from here on they differ. What
lies between counts in part: where rounding decides, it decides about next to nothing."""

_HALF = 0.5

_COMPARED = 8
"""Dimensions that tell whether targets are equal. As each is a mixture of all features, a few are enough."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Of M hidden columns of each of N lines, what lies past a line's own ones being zero or False.

    ``losses`` float32 (N, M) are cross-entropies; ``right`` bool (N, M) says where the target was more
    similar to the context than every negative.
    """

    losses: Tensor
    right: Tensor


def within_lines(
    context: Tensor, targets: Tensor, real: Tensor, keys: Tensor, *, negatives: int, temperature: float
) -> Contrast:
    """Compare each column with ``negatives`` others of its line, drawn as ``keys`` int64 (N,) say.

    ``context`` and ``targets`` are (N, M, D); ``real`` bool (N, M), on their device as are the keys, is True
    for the first columns of each line, which are its own.
    """
    context, targets = unit(context), unit(targets)
    count, columns, _ = targets.shape
    counts = real.sum(dim=1)
    # One less than there are, and those from the column itself on move by one.
    drawn = draw_below(keys, columns * negatives, (counts - 1).clamp(min=0)).view(count, columns, negatives)
    own = torch.arange(columns, device=drawn.device)[:, None]
    drawn = (drawn + (drawn >= own)).clamp(max=columns - 1)
    # All similarities of a line are cheaper than the vectors of all negatives.
    similar = context @ targets.transpose(1, 2)
    sketch = _sketch(targets)
    others = sketch.gather(1, drawn.flatten(1)[:, :, None].expand(-1, -1, sketch.shape[2]))
    weights = _weights(sketch, others.view(*drawn.shape, sketch.shape[2]))
    positive = similar.diagonal(dim1=1, dim2=2)
    return _choice(positive, similar.gather(2, drawn), weights, real, temperature=temperature)


def against_pool(
    context: Tensor,
    targets: Tensor,
    real: Tensor,
    keys: Tensor,
    pool: Tensor,
    *,
    filled: Tensor,
    negatives: int,
    temperature: float,
) -> Contrast:
    """Compare each column with ``negatives`` of a pool (P, D) of unit vectors, drawn as ``keys`` say.

    ``filled`` bool (P,) says which of the pool are there, at least one; the rest as for ``within_lines``.
    """
    context, targets = unit(context), unit(targets)
    count, columns, _ = targets.shape
    there = torch.argsort((~filled).to(torch.int8), stable=True)
    below = filled.sum().expand(count)
    drawn = there[draw_below(keys, columns * negatives, below)].view(count, columns, negatives)
    positive = (context * targets).sum(dim=2)
    weights = _weights(_sketch(targets), _sketch(pool)[drawn])
    return _choice(positive, (context @ pool.T).gather(2, drawn), weights, real, temperature=temperature)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) at length one, in float32."""
    return functional.normalize(vectors.float(), dim=-1)


def _sketch(targets: Tensor) -> Tensor:
    """Some dimensions (..., d) of unit vectors (..., D), scaled to have about the length of all."""
    dimensions = targets.shape[-1]
    some = targets.detach()[..., :: max(1, dimensions // _COMPARED)]
    return some * math.sqrt(dimensions / some.shape[-1])


def _weights(sketch: Tensor, others: Tensor) -> Tensor:
    """How much negatives count, in 0..1 (N, M, K), from sketches of targets (N, M, d) and theirs."""
    distance: Tensor = torch.linalg.vector_norm(others - sketch[:, :, None], dim=3)
    return ((distance - _EQUAL) / (_DIFFERENT - _EQUAL)).clamp(0.0, 1.0)


def _choice(
    positive: Tensor, others: Tensor, weights: Tensor, real: Tensor, *, temperature: float
) -> Contrast:
    """Cross-entropies from similarities to the target (N, M) and to negatives (N, M, K), which count as their
    ``weights`` say.

    Where none counts there is nothing to learn, and the loss is that of guessing: a network that makes all
    columns alike has not solved its task.
    """
    logits = torch.cat([positive[:, :, None] / temperature, others / temperature + weights.log()], dim=2)
    hopeless = 1.0 - weights.amax(dim=2)
    losses = logits.logsumexp(dim=2) - logits[:, :, 0] + hopeless * math.log(1 + others.shape[2])
    beaten = (positive[:, :, None] > others) | (weights < _HALF)
    right = beaten.all(dim=2) & (hopeless <= _HALF)
    return Contrast(losses=torch.where(real, losses, 0.0), right=right & real)
