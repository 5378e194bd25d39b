"""How good an order is: how much padding it costs, and how far it is from a plain shuffle.

A plain shuffle has a ``reunion_rate`` of 1 and all the correlations near 0, but of its padded columns only
six or seven in ten are real. Batches of similar width give up a part of the first for nearly all of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Widths = npt.NDArray[np.integer[Any]]
Batch = npt.NDArray[np.int64]


def padding_efficiency(widths: Widths, batches: Iterable[Batch]) -> float:
    """Real over padded columns, in 0..1, of batches of positions into ``widths`` (N,).

    Lines of a batch are padded to its widest. Give micro-batches to measure what is really computed: the
    share of all, so the wide ones weigh more.
    """
    real = padded = 0
    for batch in batches:
        if batch.size:
            own = widths[batch].astype(np.int64)
            real += int(own.sum())
            padded += int(own.max()) * own.size
    return real / padded if padded else 1.0


def load_balance(widths: Widths, ranks: Sequence[Sequence[Batch]]) -> float:
    """Mean over greatest padded columns of the ranks of one step, in 0..1: the rest is time spent waiting."""
    loads = [
        sum(int(widths[batch].max()) * batch.size for batch in batches if batch.size) for batches in ranks
    ]
    return float(np.mean(loads) / max(loads)) if any(loads) else 1.0


def reunion_rate(first: Sequence[Batch], second: Sequence[Batch]) -> float:
    """How much likelier than by chance two lines of one batch are together in a batch of the other epoch.

    Both epochs hold each position 0..N-1 exactly once. Chance is that of a random partition in batches of
    the same sizes: pairs in a batch of ``second`` over all pairs. 1 is a plain shuffle; the greatest value,
    where every epoch has the same batches, is about N over the batch size. NaN where no batch has two lines.
    """
    lines = sum(batch.size for batch in first)
    batch_of = np.empty(lines, dtype=np.int64)
    for number, batch in enumerate(second):
        batch_of[batch] = number
    together = sum(_pairs(np.unique(batch_of[batch], return_counts=True)[1]) for batch in first)
    pairs_first = _pairs(np.array([batch.size for batch in first], dtype=np.int64))
    pairs_second = _pairs(np.array([batch.size for batch in second], dtype=np.int64))
    if not pairs_first or not pairs_second:
        return float("nan")
    return together / pairs_first / (pairs_second / (lines * (lines - 1) / 2))


def width_drift(widths: Widths, batches: Sequence[Batch]) -> float:
    """Pearson correlation, in -1..1, of a batch's mean width with its step: 0 where none are served first."""
    means = _means(widths, batches)
    return _correlation(np.arange(means.size, dtype=np.float64), means)


def width_succession(widths: Widths, batches: Sequence[Batch]) -> float:
    """Correlation of a batch's mean width with the next one's, in -1..1: 0 where a step foretells nothing."""
    means = _means(widths, batches)
    return _correlation(means[:-1], means[1:])


def width_clustering(widths: Widths, batches: Sequence[Batch]) -> float:
    """Share of the variance of widths that lies between batches, less what chance puts there: at most 1.

    This is epsilon squared of a one-way analysis of variance (Kelley 1935): 0 for a plain shuffle, near 1
    where batches are cut from sorted widths.
    """
    own = [widths[batch].astype(np.float64) for batch in batches]
    everything = np.concatenate(own)
    total = float(((everything - everything.mean()) ** 2).sum())
    within = float(sum(((part - part.mean()) ** 2).sum() for part in own))
    freedom = everything.size - len(own)
    if total == 0.0 or freedom <= 0:
        return 0.0
    return 1.0 - (within / freedom) / (total / (everything.size - 1))


def _pairs(sizes: npt.NDArray[np.int64]) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def _means(widths: Widths, batches: Sequence[Batch]) -> npt.NDArray[np.float64]:
    return np.array([widths[batch].mean() for batch in batches], dtype=np.float64)


def _correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    if one.size < 2 or one.std() == 0.0 or other.std() == 0.0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
