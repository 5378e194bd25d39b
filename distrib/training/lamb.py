"""LAMB (You et al. 2020): Adam's direction, each layer's step as long as its weights allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lamb(Optimizer):
    """Layer-wise adaptive moments, algorithm 2 of "Large batch optimization for deep learning" (2020).

    Of Adam's moments m and v, with their bias corrected, u = m / (sqrt(v) + eps) + weight decay * x is the
    direction in which a parameter x goes, by lr * |x| / |u| * u: lr is the share of its norm by which a
    layer changes. Where either norm is 0, as that of a bias at first, the step is lr * u. A parameter is a
    layer: every process must hold it whole. Weight decay is decoupled from the moments.

    State of a parameter: ``step``, a number on the CPU, and ``exp_avg`` and ``exp_avg_sq`` of its shape.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        """Raises ValueError for numbers that make no sense."""
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"no LAMB with {lr=}, {betas=}, {eps=}, {weight_decay=}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step with the gradients that are there; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _alike(group["params"]):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: Mapping[str, Any]) -> None:
        """Step with parameters of one device and type, in few kernels and without waiting for the device."""
        first, second = group["betas"]
        states = [self._state(each) for each in parameters]
        gradients = [each.grad for each in parameters if each.grad is not None]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        for state in states:
            state["step"] += 1
        # The steps of parameters that were frozen for a while are fewer.
        counts = [float(state["step"]) for state in states]
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - second**count) ** 0.5 for count in counts])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, [1 - first**count for count in counts])
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        weights = torch.stack(torch._foreach_norm(parameters))
        lengths = torch.stack(torch._foreach_norm(updates))
        ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0) * group["lr"]
        torch._foreach_mul_(updates, list(ratios.to(updates[0].dtype).unbind()))
        torch._foreach_sub_(parameters, updates)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _alike(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The parameters that have a gradient, those of one device and type together."""
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for each in parameters:
        if each.grad is not None:
            found.setdefault((each.device, each.dtype), []).append(each)
    return list(found.values())
