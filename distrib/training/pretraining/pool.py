"""Negatives from all lines that are computed on at the moment, at whichever process."""

from __future__ import annotations

import torch
from torch import Tensor

from distrib.runtime.processes import Processes
from distrib.training.pretraining.drawing import draw_below

_FOR_EACH_NEGATIVE = 4
"""A process gives so many times ``--num-negatives`` columns: a choice, at a size that all know beforehand."""


def share_columns(
    targets: Tensor, real: Tensor, key: Tensor, *, negatives: int, processes: Processes
) -> tuple[Tensor, Tensor]:
    """Columns of the lines of all processes, as (P, D) and which of them are there, bool (P,).

    ``targets`` (N, M, D) are unit vectors, of which those that are ``real`` bool (N, M) are lines' own; each
    process gives some, drawn as ``key`` int64 (1,) says, none where it has none. Only its own have a
    gradient. A collective.
    """
    size = negatives * _FOR_EACH_NEGATIVE
    dimensions = targets.shape[2]
    own = targets.reshape(-1, dimensions)[_chosen(real, key, size)] if targets.shape[1] else None
    rank, world_size = processes.topology.rank, processes.topology.world_size
    slots = targets.new_zeros((world_size, size, dimensions + 1))
    if own is not None:
        slots[rank, :, :dimensions] = own.detach()
        slots[rank, :, dimensions] = real.any()
    # A sum of what is zero elsewhere: all slots at every process.
    slots = processes.sum_tensor(slots)
    filled = slots[:, :, dimensions].flatten() > 0
    others = slots[:, :, :dimensions]
    if own is None:
        return others.flatten(0, 1), filled
    return torch.cat([*others[:rank], own, *others[rank + 1 :]]), filled


def _chosen(real: Tensor, key: Tensor, size: int) -> Tensor:
    """``size`` places of those that are True in ``real`` (N, M), as places in it flattened."""
    flat = real.flatten()
    places = torch.argsort((~flat).to(torch.int8), stable=True)
    return places[draw_below(key, size, flat.sum().view(1))[0]]
