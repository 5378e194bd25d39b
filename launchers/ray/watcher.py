"""The machines of a Ray cluster: which are there, which will go, and waiting for those that are not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrib.errors import InputError, RunError
from launchers.ray.environment import shown_needs
from launchers.stop import StopRequest

WAIT_SECONDS = 3600.0
"""How long a run waits for machines before it gives up."""
_LOOK = 0.5
_ENOUGH_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A living machine. ``total`` and ``free`` are resources by Ray's names; ``drained_by`` is the unix time
    in seconds by which it will have gone, 0 where that is not known, None where it stays."""

    id: str
    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    drained_by: float | None = None

    def gives(self, needs: Mapping[str, float], *, now: bool) -> bool:
        """Whether a machine of a run can be placed on it, ``now`` or ever."""
        has = self.free if now else self.total
        return self.drained_by is None and all(has.get(name, 0.0) >= amount for name, amount in needs.items())


def living_nodes() -> list[Node]:
    """The machines of the cluster that this process is connected to."""
    import ray

    free, draining = _free(), _draining()
    nodes = [
        Node(
            id=node["NodeID"],
            name=_name(node),
            total=node["Resources"],
            free=free.get(node["NodeID"], node["Resources"]),
            drained_by=draining.get(node["NodeID"]),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted(nodes, key=lambda node: node.name)


def node_names() -> dict[str, str]:
    """What people call each machine that the cluster has had, by its id."""
    import ray

    return {node["NodeID"]: _name(node) for node in ray.nodes()}


def _name(node: Mapping[str, Any]) -> str:
    """The name it was started with, else that of the host: Ray calls unnamed nodes by their address."""
    name, address = str(node.get("NodeName") or ""), node.get("NodeManagerAddress")
    return name if name and name != address else str(node.get("NodeManagerHostname") or address)


def _free() -> dict[str, dict[str, float]]:
    """Free resources by node; without them, of a version of Ray that hides them, total ones are used."""
    with contextlib.suppress(AttributeError, ImportError):
        from ray._private import state

        return dict(state.available_resources_per_node())
    return {}


def _draining() -> dict[str, float]:
    """When each node that was given notice goes (unix time in seconds, 0 unknown).

    Ray has no public call for this outside a train function; its own Ray Train asks here as well.
    """
    with contextlib.suppress(AttributeError, ImportError):
        from ray._private.state import state

        return {node: milliseconds / 1000 for node, milliseconds in state.get_draining_nodes().items()}
    return {}


def check_capacity(nodes: Sequence[Node], needs: Mapping[str, float], wanted: int) -> None:
    """Raise InputError where a cluster can never hold ``wanted`` machines with these needs.

    Ray itself would wait for ever, which is right only where machines are added on demand.
    """
    able = [node for node in nodes if node.gives(needs, now=False)]
    if len(able) >= wanted:
        return
    has = "; ".join(f"{node.name} with {shown_needs(_known(node.total, needs))}" for node in nodes)
    raise InputError(
        f"--nodes {wanted} with {shown_needs(needs)} each: the cluster has {len(able)} such "
        f"machine{'' if len(able) == 1 else 's'} ({has}); ask for fewer, or give --min-nodes {wanted} to "
        "wait until there are enough."
    )


def _known(total: Mapping[str, float], needs: Mapping[str, float]) -> dict[str, float]:
    return {name: total.get(name, 0.0) for name in needs}


def nodes_to_use(
    needs: Mapping[str, float],
    *,
    minimum: int,
    wanted: int,
    stop: StopRequest,
    echo: Callable[[str], None],
    limit: float = WAIT_SECONDS,
) -> int:
    """How many machines the next attempt has: ``wanted``, or fewer but at least ``minimum``, waiting for it.

    0 where ``stop`` wants the end meanwhile. More than the minimum are waited for just long enough that
    machines which come back together are used together.

    Raises RunError where the minimum is not there within ``limit`` seconds.
    """
    began = time.monotonic()
    demand = _Demand(needs, minimum)
    try:
        while stop.reason is None:
            waited = time.monotonic() - began
            demand.release_when_met()
            free = sum(node.gives(needs, now=True) for node in living_nodes())
            if free >= wanted or (free >= minimum and waited >= _ENOUGH_SECONDS):
                return min(free, wanted)
            if waited > limit:
                raise RunError(
                    f"{minimum} machines with {shown_needs(needs)} were not to be had within "
                    f"{limit / 60:.0f} minutes; see what else runs in the cluster, and launch again."
                )
            # Ray knows of what the attempt before has given back a moment later.
            if free < minimum and waited >= _ENOUGH_SECONDS and demand.begin():
                echo(f"Waiting for {minimum} machines with {shown_needs(needs)} each; {free} are free.")
            time.sleep(_LOOK)
    finally:
        demand.end()
    return 0


class _Demand:
    """A placement group that nobody uses: a cluster that adds machines on demand does so while it waits."""

    def __init__(self, needs: Mapping[str, float], count: int) -> None:
        self._bundles = [dict(needs) for _ in range(count)]
        self._group: Any = None
        self._told = False

    def begin(self) -> bool:
        """Make the demand, if it is not made; whether it is the first."""
        from ray.util.placement_group import placement_group

        if self._group is None:
            self._group = placement_group(self._bundles, strategy="STRICT_SPREAD")
        first, self._told = not self._told, True
        return first

    def release_when_met(self) -> None:
        """Let go of the machines as soon as Ray has set them aside, for the attempt itself."""
        if self._group is not None and self._group.wait(0.1):
            self.end()

    def end(self) -> None:
        """Take the demand back."""
        from ray.util.placement_group import remove_placement_group

        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None
