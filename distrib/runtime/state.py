"""The tensors of a training state as one process holds them, under names that no strategy changes.

A key is ``weights/<parameter>`` for a parameter of the trained network, and ``<name>/<parameter>`` for what
the optimizer keeps of it, such as ``exp_avg/nn.C_0.co.weight`` or ``step/nn.C_0.co.weight``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

WEIGHTS = "weights"


def state_key(kind: str, parameter: str) -> str:
    """The key of what is kept of a parameter: its ``weights``, or a name of the optimizer's."""
    return f"{kind}/{parameter}"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Elements of a tensor of ``shape`` flattened row by row: ``values`` (n,) from element ``start`` on.

    A number is a tensor of shape () with one element.
    """

    shape: tuple[int, ...]
    start: int
    values: Tensor

    @property
    def whole(self) -> bool:
        """Whether it is all of the tensor."""
        size = 1
        for length in self.shape:
            size *= length
        return self.start == 0 and self.values.numel() == size


@dataclass(frozen=True, kw_only=True)
class LocalState:
    """What one process holds of the state: pieces by key, views of the live tensors on their device.

    Together the processes hold every element at least once. ``groups`` are the settings of the optimizer's
    parameter groups in plain types, the same at every process.
    """

    pieces: Mapping[str, Piece]
    groups: list[dict[str, Any]]


class StateReader(Protocol):
    """The tensors of a checkpoint, on the CPU, whatever strategy wrote it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor by key."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The settings of the optimizer's parameter groups."""

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` (None: the end) of a tensor flattened row by row, (n,)."""


def kinds_by_parameter(reader: StateReader) -> dict[str, list[str]]:
    """What the optimizer has kept of each parameter, by names such as ``exp_avg``."""
    found: dict[str, list[str]] = {}
    for key in reader.shapes:
        kind, _, parameter = key.partition("/")
        if kind != WEIGHTS:
            found.setdefault(parameter, []).append(kind)
    return found
