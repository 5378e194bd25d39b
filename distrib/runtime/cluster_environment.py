"""The topology of a job as Lightning asks for it."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from distrib.runtime.topology import Topology


class PlacedEnvironment(ClusterEnvironment):
    """A job whose processes were placed by a launcher and have joined already."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self._topology = topology

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning must start none itself."""
        return True

    @property
    def main_address(self) -> str:
        """Where the processes have met."""
        return os.environ.get("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        """Where the processes have met."""
        return int(os.environ.get("MASTER_PORT", "0"))

    @staticmethod
    def detect() -> bool:
        """Never chosen by Lightning, only given."""
        return False

    def world_size(self) -> int:
        """Processes of the job."""
        return self._topology.world_size

    def set_world_size(self, size: int) -> None:
        """What Lightning counts changes nothing."""

    def global_rank(self) -> int:
        """The rank among all."""
        return self._topology.rank

    def set_global_rank(self, rank: int) -> None:
        """What Lightning counts changes nothing."""

    def local_rank(self) -> int:
        """The rank among those of the node."""
        return self._topology.local_rank

    def node_rank(self) -> int:
        """The number of the node."""
        return self._topology.node_rank
