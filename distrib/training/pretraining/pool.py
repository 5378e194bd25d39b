"""Negatives from all lines that are computed on at the moment, at whichever process."""

from __future__ import annotations

from typing import Any

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
    process gives some, drawn as ``key`` int64 (1,) says, none where it has none. What processes learn by
    comparing with a column goes back to the one whose it is, so that the gradient is that of the loss of all,
    however many they are. A collective, and its backward pass is one.
    """
    size, dimensions = negatives * _FOR_EACH_NEGATIVE, targets.shape[2]
    if targets.shape[1]:
        own = targets.flatten(0, 1)[_chosen(real, key, size)]
    else:
        # Of nothing, and yet with a gradient: the others wait for it.
        own = targets.sum() + targets.new_zeros((size, dimensions))
    there = real.any().to(own.dtype).expand(size, 1)
    slots: Tensor = _Exchanged.apply(torch.cat([own, there], dim=1), processes)  # type: ignore[no-untyped-call]
    return slots[:, :dimensions], slots[:, dimensions] > 0


class _Exchanged(torch.autograd.Function):
    """Rows (n, d) of each process, after one another (W * n, d); their gradient is summed over processes."""

    @staticmethod
    def forward(context: Any, own: Tensor, processes: Processes) -> Tensor:
        context.processes = processes
        slots = own.new_zeros((processes.topology.world_size, *own.shape))
        slots[processes.topology.rank] = own
        # A sum of what is zero elsewhere: all slots at every process.
        return processes.sum_tensor(slots).flatten(0, 1)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        processes: Processes = context.processes
        # Summed in place, and not in what autograd may still use.
        slots = processes.sum_tensor(gradients[0].clone(memory_format=torch.contiguous_format))
        return slots.chunk(processes.topology.world_size)[processes.topology.rank], None


def _chosen(real: Tensor, key: Tensor, size: int) -> Tensor:
    """``size`` places of those that are True in ``real`` (N, M), as places in it flattened."""
    flat = real.flatten()
    places = torch.argsort((~flat).to(torch.int8), stable=True)
    return places[draw_below(key, size, flat.sum().view(1))[0]]
