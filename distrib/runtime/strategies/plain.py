"""Every process holds the whole state: one process alone, or several under DDP."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from distrib.runtime.state import WEIGHTS, LocalState, Piece, StateReader, kinds_by_parameter, state_key
from distrib.runtime.strategies.base import StateKeeping

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer


_OF_THE_MACHINE = frozenset({"foreach", "fused", "capturable"})
"""Settings of torch's optimizers that follow from where they run, which may be elsewhere next time."""


class _WholeState(StateKeeping):
    """What the strategies of this file share."""

    def local_state(self) -> LocalState:
        return whole_state(self.trained, self.optimizers[0])

    def load_state(self, reader: StateReader) -> None:
        load_whole_state(self.trained, self.optimizers[0], reader)

    def weights_of(self, group: int) -> list[torch.Tensor]:
        return list(self.optimizers[0].param_groups[group]["params"])

    def update(self, optimizer: LightningOptimizer, *, clip: float) -> bool:
        if self.scaled:
            # The scaler leaves a step out by itself, and lessens its scale with it.
            scaler: Any = self.precision_plugin.scaler  # type: ignore[attr-defined]
            scale = scaler.get_scale()
            optimizer.step()
            return bool(scaler.get_scale() >= scale)
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        norm = clip_grad_norm_(parameters, clip or float("inf"))
        if not bool(torch.isfinite(norm)):
            return False
        optimizer.step()
        return True


class SingleProcess(_WholeState, SingleDeviceStrategy):
    """One process on one device."""


class DataParallel(_WholeState, DDPStrategy):
    """DDP (Li et al. 2020): all processes hold all of the state and average their gradients."""

    def synchronized(self, last: bool) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = nullcontext() if last else self.block_backward_sync()
        return context

    def without_part(self, parameters: Iterable[nn.Parameter]) -> torch.Tensor | float:
        """DDP averages all gradients, and waits until it has been given each: with the last micro-batch."""
        if not getattr(self.model, "require_backward_grad_sync", True):
            return 0.0
        return sum(each.flatten()[0] for each in parameters) * 0.0


def whole_state(network: nn.Module, optimizer: Optimizer) -> LocalState:
    """Weights and optimizer state of a network that is whole in this process, views of the live tensors."""
    pieces = {
        state_key(WEIGHTS, name): _piece(tensor.detach()) for name, tensor in network.state_dict().items()
    }
    for name, parameter in network.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                pieces[state_key(kind, name)] = _piece(torch.as_tensor(value))
    return LocalState(pieces=pieces, groups=group_settings(optimizer))


def load_whole_state(network: nn.Module, optimizer: Optimizer, reader: StateReader) -> None:
    """Load what ``whole_state`` gives. Raises InputError where the checkpoint is of another network."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(_whole(reader, state_key(WEIGHTS, name)))
    names = {parameter: name for name, parameter in network.named_parameters()}
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    kept = kinds_by_parameter(reader)
    state = {}
    for number, parameter in enumerate(parameters):
        name = names[parameter]
        if kinds := kept.get(name):
            state[number] = {kind: _whole(reader, state_key(kind, name)).clone() for kind in kinds}
    groups = optimizer.state_dict()["param_groups"]
    restore_groups(groups, reader)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # Torch gives everything the type of the weights, which may be a shorter one.
    for number, parameter in enumerate(parameters):
        for kind, value in state.get(number, {}).items():
            if value.shape == parameter.shape and optimizer.state[parameter][kind].dtype != value.dtype:
                optimizer.state[parameter][kind] = value.to(parameter.device)


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of parameter groups, without the parameters and what the machine decides."""
    return [
        {key: value for key, value in group.items() if key != "params" and key not in _OF_THE_MACHINE}
        for group in optimizer.param_groups
    ]


def restore_groups(groups: list[dict[str, Any]], reader: StateReader) -> None:
    """Give parameter groups, or their settings, what a checkpoint has of them; there are equally many."""
    for group, saved in zip(groups, reader.groups, strict=True):
        group.update({key: value for key, value in saved.items() if key not in _OF_THE_MACHINE})


def _piece(tensor: torch.Tensor) -> Piece:
    return Piece(shape=tuple(tensor.shape), start=0, values=tensor.detach().reshape(-1))


def _whole(reader: StateReader, key: str) -> torch.Tensor:
    return reader.read(key).reshape(reader.shapes[key])
