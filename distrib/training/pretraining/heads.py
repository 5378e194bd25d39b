"""What pretraining needs beside the network, and leaves behind when it is done."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distrib.errors import InputError
from distrib.model.taps import FeatureTap
from distrib.model.vgsl import VGSLNetwork

MASK, PROJECTION = "mask", "projection"
"""Their names among the auxiliary modules."""

_WIDTHS = 4096
"""Line widths in pixels at which the columns of feature map and output are compared."""


class MaskVector(nn.Module):
    """A learned column that stands in for each hidden one."""

    def __init__(self, channels: int, height: int) -> None:
        super().__init__()
        # As in wav2vec 2.0.
        self.vector = nn.Parameter(torch.rand(channels, height))

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Features (N, C, H, W) with the columns that are True in ``masks`` (N, W) replaced."""
        vector = self.vector[None, :, :, None].to(features.dtype)
        return torch.where(masks[:, None, None], vector, features)


def make_heads(network: VGSLNetwork, tap: FeatureTap, *, seed: int) -> dict[str, nn.Module]:
    """The mask vector, and the projection of columns of the feature map to the size of the output's.

    The network ends in an output layer, before which its last column has the size meant. Initial weights
    follow from the seed alone.
    """
    size = output_size(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            MASK: MaskVector(tap.channels, tap.height),
            PROJECTION: nn.Linear(tap.channels * tap.height, size),
        }


def output_size(network: VGSLNetwork) -> int:
    """The channels of what the output layer of a network is given."""
    layer = list(network.nn.children())[-1]
    return int(layer.lin.in_features)  # type: ignore[union-attr,arg-type]


def checked_tap(network: VGSLNetwork) -> FeatureTap:
    """The feature map of a network that pretraining can learn from.

    Raises InputError where there is none, where its height varies, or where its columns are not those of the
    output.
    """
    tap = FeatureTap(network)
    widths = torch.arange(1, _WIDTHS)
    if not tap.height:
        problem = "the height of its feature map varies with the lines; give the input a fixed height"
    elif not torch.equal(tap.width(widths), network.output_width(widths)):
        problem = (
            "its output has other columns than its feature map, which its first recurrent layer is given, so "
            "that no column can be predicted; put strides and pooling before the recurrent layers"
        )
    else:
        return tap
    raise InputError(f"VGSL spec `{network.spec}`: {problem}.")
