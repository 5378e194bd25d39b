"""The order of an epoch: which lines are in which batch, a pure function of widths, seed and settings.

Lines are shuffled over the whole data set; inside stretches of many batches they are sorted by width and
cut into batches, and the batches of all stretches are shuffled again. Batches are then nearly free of
padding while any two lines can still meet, and the order of widths carries no information.

What is traded: a longer stretch means less padding, but lines of equal width meet each other more often
than chance would have it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STRETCH = 64
"""Batches of a stretch at most; with 64 the padding of real line sets is within a point of full sorting."""

_SMALLEST_PART = 8
"""A stretch is at most this part of the lines: in a small set, longer ones would make the same lines
neighbours in every epoch, which costs several points of accuracy early in training."""

Batch = npt.NDArray[np.int64]


def epoch_plan(
    widths: npt.NDArray[np.int32], *, batch_size: int, seed: int, epoch: int, stretch: int = STRETCH
) -> list[Batch]:
    """The batches of one epoch: each an array of positions into ``widths`` (N,), at most ``batch_size`` long.

    Every position occurs exactly once; the last incomplete batch is kept. The generator is counter-based
    (Philox) and keyed by (seed, epoch): the order is the same on every machine and needs no replay.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = generator.permutation(widths.shape[0])
    if batch_size == 1:
        return list(order.reshape(-1, 1))
    span = batch_size * max(1, min(stretch, widths.size // (_SMALLEST_PART * batch_size)))
    batches: list[Batch] = []
    for start in range(0, order.size, span):
        piece = order[start : start + span]
        # Equal widths keep their shuffled order: the sort must be stable to be reproducible.
        piece = piece[np.argsort(widths[piece], kind="stable")]
        batches += np.split(piece, range(batch_size, piece.size, batch_size))
    return [batches[position] for position in generator.permutation(len(batches))]


def sequential_plan(widths: npt.NDArray[np.int32], *, batch_size: int) -> list[Batch]:
    """Batches for evaluation: all positions once, widest first, so that memory runs out at once or never."""
    order = np.argsort(-widths.astype(np.int64), kind="stable")
    return np.split(order, range(batch_size, order.size, batch_size)) if order.size else []


def padding_efficiency(widths: npt.NDArray[np.int32], plan: list[Batch]) -> float:
    """Real over padded columns of a plan, in 0..1."""
    padded = sum(int(widths[batch].max()) * batch.size for batch in plan)
    return float(widths.astype(np.int64).sum() / padded) if padded else 1.0
