"""A backbone that does not learn at first: all of a network but its last layer.

A run that begins with a fresh last layer on a trained network would spoil the one before the other is any
good. How long is counted in lines over all processes, so that it ends at the same step at every world size
and after every resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from distrib.model.resize import ctc_layer
from distrib.model.vgsl import VGSLNetwork
from distrib.runtime.strategies.base import StateKeeping

_BACKBONE = 0
"""The number of the backbone's parameter group."""


class Backbone:
    """The layers of ``network`` before its last one, which do not learn in steps that begin with fewer than
    ``frozen_for`` lines done.

    Then no gradient goes through them. Some strategies take a step with them all the same, of zero gradient
    and learning rate, and forget what the optimizer kept of it: they begin to learn as if the run began.
    Raises InputError for a network that does not end in a CTC output layer.
    """

    def __init__(self, network: VGSLNetwork, *, frozen_for: int) -> None:
        self._output = ctc_layer(network)
        own = set(self._output.parameters())
        self._parameters = [each for each in network.parameters() if each not in own]
        self._frozen_for = frozen_for

    def is_frozen(self, samples: int) -> bool:
        """Whether it learns nothing in a step before which ``samples`` lines were done."""
        return samples < self._frozen_for

    def groups(self, trained: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: the backbone, and the other parameters that are trained."""
        own = set(self._parameters)
        backbone = [each for each in trained if each in own]
        return [{"params": backbone}, {"params": [each for each in trained if each not in own]}]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, a pass through the network sends no gradient beyond the last layer."""
        handle = self._output.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
        try:
            yield
        finally:
            handle.remove()

    def absence(self, keeping: StateKeeping) -> Tensor | float:
        """Zero, to be added to the loss of such a pass."""
        return keeping.without_part(self._parameters)

    @staticmethod
    def still(optimizer: Any) -> None:
        """Set the backbone's learning rate to zero, so that weight decay leaves it alone, too."""
        optimizer.param_groups[_BACKBONE]["lr"] = 0.0

    @staticmethod
    def forget(keeping: StateKeeping) -> None:
        """Drop what the optimizer keeps of the backbone, after a step that it was held in."""
        keeping.forget(_BACKBONE)
