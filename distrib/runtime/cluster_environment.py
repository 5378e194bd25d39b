"""The topology of a job as Lightning asks for it."""

from __future__ import annotations

import os
from functools import cached_property

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from distrib.errors import InputError
from distrib.runtime.devices import sees_own_gpu_only
from distrib.runtime.meeting_point import MeetingPoint, meeting_point
from distrib.runtime.topology import Topology


class PlacedEnvironment(ClusterEnvironment):
    """A job whose processes were placed by a launcher and have joined already.

    Where each process sees one GPU alone, ``device`` being that of ``--device``, Lightning is told that each
    has a machine of its own: it takes the GPU of the local rank's number.
    """

    def __init__(self, topology: Topology, *, device: str = "cpu") -> None:
        super().__init__()
        self._topology = topology
        self._alone = sees_own_gpu_only(device, topology)

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning must start none itself."""
        return True

    @property
    def main_address(self) -> str:
        """Where the processes have met."""
        return self._point.host

    @property
    def main_port(self) -> int:
        """Where the processes have met."""
        return self._point.port

    @cached_property
    def _point(self) -> MeetingPoint:
        try:
            return meeting_point(os.environ, self._topology)
        except InputError:
            return MeetingPoint(host="127.0.0.1", port=0)  # one process has met nobody

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
        return 0 if self._alone else self._topology.local_rank

    def node_rank(self) -> int:
        """The number of the node."""
        return self._topology.rank if self._alone else self._topology.node_rank
