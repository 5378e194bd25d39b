"""Telling when a network makes the same of every column, as contrastive training can end.

Two measures over the targets of hidden columns, vectors of length one: their spread, 1 where they point in
all directions and 0 where all in one (the standard deviation that Chen and He 2021 watch, times the root of
the dimensions), and how many dimensions they fill, the effective rank of their second moments (Roy and
Vetterli 2007). Both follow from sums, which can be added up over processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distrib.runtime.processes import Processes

LEAST_SPREAD = 0.05
"""Less, and the mean cosine similarity of two columns is above 0.9975."""


class Directions:
    """Sums over vectors (n, D) of length one, in float64: float32 stops counting at 2**24 of them."""

    def __init__(self, dimensions: int) -> None:
        self._moments = torch.zeros((dimensions + 1, dimensions + 1), dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Count vectors (n, D); waits for their device."""
        vectors = vectors.detach().float()
        # With a one in front the products hold sums and the count as well.
        vectors = torch.cat([torch.ones_like(vectors[:, :1]), vectors], dim=1)
        # Converted on the CPU, since not every device has float64.
        self._moments += (vectors.T @ vectors).cpu().double()

    def measure(self, processes: Processes) -> tuple[float, float]:
        """(spread, effective rank) of the vectors of all processes; zeros without any. A collective."""
        moments = processes.sum_tensor(self._moments)
        count = float(moments[0, 0])
        if not count:
            return 0.0, 0.0
        mean = moments[0, 1:] / count
        spread = max(0.0, 1.0 - float(mean.square().sum())) ** 0.5
        shares = torch.linalg.eigvalsh(moments[1:, 1:] / count).clamp(min=0)
        shares = shares / shares.sum()
        rank = float(torch.special.entr(shares).sum().exp())
        return spread, rank


def collapse_warning(spread: float, rank: float) -> str | None:
    """A sentence where the features have collapsed, with a way out."""
    if spread >= LEAST_SPREAD:
        return None
    return (
        f"The features have collapsed: all columns have become nearly alike (spread {spread:.3f}, effective "
        f"rank {rank:.1f}), so that nothing more is learned; start again with a lower --lrate, a longer "
        "--warmup or fewer masks (--mask-probability)."
    )
