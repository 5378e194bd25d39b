"""An exponential moving average of the weights (Polyak and Juditsky 1992): what is validated and exported.

The optimizer keeps it beside its own state of each weight, so that every strategy divides, saves and loads
it as it does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from distrib.model.vgsl import VGSLNetwork
from distrib.runtime.checkpoints.contents import AVERAGES
from distrib.runtime.processes import Processes
from distrib.runtime.state import WEIGHTS, Piece, state_key
from distrib.runtime.strategies.base import StateKeeping
from distrib.training.decoding import dtype_of

_STEPS = "averaged_steps"
"""The entry of a parameter group that counts the steps in its averages."""


def keep_averages(optimizer: Optimizer, decay: float) -> None:
    """Let an optimizer average its weights after each step that it takes.

    The n-th step (from 0) weighs them by ``decay`` or (1 + n) / (10 + n), whichever is less, so that first
    steps are soon forgotten; averages begin with the weights after it. A weight without a gradient did not
    take part and has none. They are float32 whatever the weights are, or float64.
    """

    def average(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            # DeepSpeed takes the step for one group after the other, with nothing in the others.
            if group["params"]:
                steps = group.get(_STEPS, 0)
                learned = [each for each in group["params"] if each.grad is not None]
                share = 1.0 - min(decay, (1 + steps) / (10 + steps))
                _move([optimizer.state[each] for each in learned], learned, share)
                group[_STEPS] = steps + 1

    optimizer.register_step_post_hook(average)


def drop_averages(keeping: StateKeeping) -> None:
    """Let the optimizer of a run that does not average forget what an earlier part of it did."""
    for number, group in enumerate(keeping.optimizers[0].param_groups):
        if group.pop(_STEPS, None) is not None:
            keeping.forget(number, AVERAGES)


def averaged_network(network: VGSLNetwork, keeping: StateKeeping, processes: Processes) -> VGSLNetwork:
    """A whole copy of the network with averaged weights, on this process's device and ready for validation.

    What has no average, as it did not learn yet, is as it is. A collective under strategies that divide the
    state; takes the memory of the network at each process.
    """
    # Initial values would be drawn for nothing.
    with torch.device("meta"):
        copy = VGSLNetwork(network.spec)
    copy = copy.to_empty(device=keeping.root_device)
    pieces = keeping.local_state().pieces
    tensors = copy.state_dict()
    known = processes.sum([state_key(AVERAGES, name) in pieces for name in tensors])
    for (name, tensor), averaged in zip(tensors.items(), known, strict=True):
        key = state_key(AVERAGES if averaged else WEIGHTS, name)
        tensor.copy_(_gathered(pieces, key, like=tensor, processes=processes if keeping.sharded else None))
    return copy.to(dtype_of(network)).eval()


def _move(states: list[dict[str, Any]], weights: list[Tensor], share: float) -> None:
    """Move averages by ``share`` of their distance towards the weights."""
    averages, targets = [], []
    for state, weight in zip(states, weights, strict=True):
        target = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
        if AVERAGES in state:
            averages.append(state[AVERAGES])
            targets.append(target)
        else:
            state[AVERAGES] = target.clone()
    if averages:
        torch._foreach_lerp_(averages, targets, share)


def _gathered(pieces: Mapping[str, Piece], key: str, *, like: Tensor, processes: Processes | None) -> Tensor:
    """A tensor of which each process holds a part, or this one (None: no others) all of it."""
    values = torch.zeros_like(like).view(-1)
    piece = pieces.get(key)
    if piece is not None:
        values[piece.start : piece.start + piece.values.numel()].copy_(piece.values)
    if processes is not None:
        processes.sum_tensor(values)
    return values.view(like.shape)
