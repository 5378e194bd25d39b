"""Reaching in between the layers of a network: its feature map, seen and changed on the way.

The feature map is what the first recurrent layer along the line is given: all that the layers before it make
of the image, a column of it for some columns of the line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from distrib.errors import InputError
from distrib.model import spec
from distrib.model.shapes import Width, input_shape, output_shape, output_width
from distrib.model.vgsl import VGSLNetwork
from distrib.model.widths import LineWidths, zero_padding

Lines = tuple[Tensor, LineWidths | None]

Change = Callable[[Tensor, Tensor], Tensor]
"""From features (N, C, H', W') and the columns of each line, int64 (N,) on the CPU, to others like them."""


class FeatureTap:
    """The feature map of a network, ``channels`` of ``height`` pixels (0: variable) a column.

    Raises InputError for a network without a recurrent layer along the line, or with one inside a group.
    """

    def __init__(self, network: VGSLNetwork) -> None:
        before: list[spec.Block | spec.Group] = []
        shape = input_shape(network.parsed)
        for child in network.parsed.body.children:
            if isinstance(child, spec.Recurrent) and child.axis == "x":
                break
            shape = output_shape(child, shape)
            before.append(child)
        else:
            raise InputError(
                f"VGSL spec `{network.spec}`: it has no recurrent layer along the line (such as Lbx200) "
                "outside of groups, before which its feature map would end; give it one."
            )
        self.channels = shape.channels
        self.height = shape.height
        self._before = before
        self._input = input_shape(network.parsed)
        self._layer: nn.Module = network.nn.get_submodule(child.name)

    def width(self, width: Width) -> Width:
        """Columns of the feature map for lines of a width in pixels; an int, an array or a tensor of them."""
        return output_width(spec.Group(parallel=False, children=tuple(self._before)), self._input, width)

    @contextmanager
    def changing(self, change: Change) -> Iterator[None]:
        """Within, the recurrent layers get what ``change`` makes of the feature map, zero in the padding."""

        def replaced(_: nn.Module, inputs: Lines) -> Lines:
            features, widths = inputs
            columns = torch.full((len(features),), features.shape[-1]) if widths is None else widths.values
            return zero_padding(change(features, columns), widths), widths

        handle = self._layer.register_forward_pre_hook(replaced)
        try:
            yield
        finally:
            handle.remove()
