"""How the preflight speaks of seconds, processes and hosts."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 3


def duration(seconds: float) -> str:
    """Seconds as ms below one."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.1f} s"


def place(rank: int, hosts: Sequence[str]) -> str:
    """``process 1 on node2``; ``hosts`` are those of all processes, by rank."""
    return f"process {rank} on {hosts[rank]}"


def listing(names: Sequence[str]) -> str:
    """``node1, node2 and node3``; of more than three the first, and how many others."""
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def holders(values: Sequence[str], hosts: Sequence[str]) -> str:
    """``2.5.1 on node1 and node2, 2.4.0 on node3``; by rank who has which value, rank zero's first.

    Processes of one host that differ are named by their ranks.
    """
    by_host = {host: {value for value, at in zip(values, hosts, strict=True) if at == host} for host in hosts}
    found: dict[str, dict[str, None]] = {}
    for rank, (value, host) in enumerate(zip(values, hosts, strict=True)):
        found.setdefault(value, {})[host if len(by_host[host]) == 1 else place(rank, hosts)] = None
    return ", ".join(f"{value} on {listing(list(names))}" for value, names in found.items())
