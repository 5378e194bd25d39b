"""Optimizers by the names of the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from distrib.config.learning import Learning
from distrib.errors import InputError
from distrib.training.lamb import Lamb

_SECOND_BETA = 0.999
"""How slowly Adam and its kin forget squares of gradients; what ``--momentum`` is to them is the first."""


def check_optimizer(options: Learning) -> None:
    """Raise InputError for a momentum with which nothing would ever be forgotten."""
    if options.momentum >= 1:
        raise InputError(f"--momentum {options.momentum:g}: it must be below 1, such as 0.9.")


def make_optimizer(groups: Sequence[Mapping[str, Any]], options: Learning) -> Optimizer:
    """The optimizer that ``--optimizer`` names with its learning rate, momentum and weight decay.

    ``groups`` are parameter groups as torch has them, on the device that they are trained on; their own
    settings go before the options'. ``--momentum`` is the first beta of Adam, AdamW and Lamb. Weight decay
    is decoupled in AdamW and Lamb, a part of the gradient in the others.
    """
    own = [{**group, "params": list(group["params"])} for group in groups]
    lrate, decay, momentum = options.lrate, options.weight_decay, options.momentum
    betas = (momentum, _SECOND_BETA)
    fused = _can_be_fused([each for group in own for each in group["params"]])
    optimizer: Optimizer
    match options.optimizer:
        case "AdamW":
            optimizer = AdamW(own, lr=lrate, betas=betas, weight_decay=decay, fused=fused)
        case "Adam":
            optimizer = Adam(own, lr=lrate, betas=betas, weight_decay=decay, fused=fused)
        case "SGD":
            optimizer = SGD(own, lr=lrate, momentum=momentum, weight_decay=decay, fused=fused)
        case "RMSprop":
            optimizer = RMSprop(own, lr=lrate, momentum=momentum, weight_decay=decay)
        case "Lamb":
            optimizer = Lamb(own, lr=lrate, betas=betas, weight_decay=decay)
    # A fused optimizer would unscale float16's gradients in its step, which is too late for clipping them.
    vars(optimizer)["_step_supports_amp_scaling"] = False
    return optimizer


def _can_be_fused(parameters: Sequence[torch.nn.Parameter]) -> bool | None:
    """True where torch updates all of these in one kernel, 2 to 4 times as quick; else None, its choice."""
    devices = {each.device.type for each in parameters}
    fits = devices <= {"cpu", "cuda"} and all(each.is_floating_point() for each in parameters)
    return True if fits else None
