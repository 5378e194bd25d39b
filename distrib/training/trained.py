"""What a strategy trains: the network, and modules that help it learn and are not exported."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from distrib.model.vgsl import VGSLNetwork


class Trained(nn.Module):
    """The network's layers under their own names and auxiliary modules by name as ``extra.<name>``.

    Each auxiliary module is used by calling it, once a pass at most.
    """

    def __init__(self, network: VGSLNetwork, extra: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.nn = network.nn
        self.extra = nn.ModuleDict(dict(extra))
