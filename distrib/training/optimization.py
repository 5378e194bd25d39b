"""Optimizers by the names of the options."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from distrib.config.sections import Train


def make_optimizer(parameters: Iterable[torch.nn.Parameter], options: Train) -> torch.optim.Optimizer:
    """The optimizer that ``--optimizer`` names with its learning rate, momentum and weight decay."""
    lrate, decay = options.lrate, options.weight_decay
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    match options.optimizer:
        case "AdamW":
            return torch.optim.AdamW(trained, lr=lrate, weight_decay=decay)
        case "Adam":
            return torch.optim.Adam(trained, lr=lrate, weight_decay=decay)
        case "SGD":
            return torch.optim.SGD(trained, lr=lrate, momentum=options.momentum, weight_decay=decay)
        case "RMSprop":
            return torch.optim.RMSprop(trained, lr=lrate, momentum=options.momentum, weight_decay=decay)
        case other:
            raise ValueError(f"no optimizer {other}")
