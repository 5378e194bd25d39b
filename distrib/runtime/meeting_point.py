"""Where the processes of a job meet, from what their launcher says."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from distrib.errors import InputError
from distrib.runtime.hostlist import hosts
from distrib.runtime.topology import Topology, is_step

_FIRST_PORT: Final = 15000
_PORTS: Final = 16384
"""Below those that the system gives to outgoing connections, of which one may be there already."""

_SCONTROL_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class MeetingPoint:
    """Address and port of process 0, and what tells this job from another that comes there by accident.

    ``hosted``: the launcher keeps a store there already, as torch's elastic agent does.
    """

    host: str
    port: int
    job: str = ""
    hosted: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def meeting_point(
    environ: Mapping[str, str], topology: Topology, *, resolve: Callable[[str], str] | None = None
) -> MeetingPoint:
    """Where to meet: MASTER_ADDR and MASTER_PORT, else under srun the first host of the step and a port that
    follows from job and step, so that two jobs on one node do not meet.

    ``resolve`` makes an address of a host's name (None: asks the name service, then SLURM).

    Raises InputError where there is nothing to go by, or a port is none.
    """
    host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(f"MASTER_PORT={port} is no port; set it to a free one from 1024 to 65535.")
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    if is_step(environ):
        if not host and nodes:
            host = (resolve or address_of)(next(hosts(nodes)))
        port = port or str(_port_of(environ))
    if not host or not port:
        missing = "MASTER_ADDR" if not host else "MASTER_PORT"
        raise InputError(
            f"Process {topology.rank} of {topology.world_size} cannot join the others: {missing} is not set; "
            "start the job with ketos launch, torchrun or srun, or set MASTER_ADDR and MASTER_PORT to the "
            "host of process 0 and a free port there."
        )
    return MeetingPoint(
        host=host,
        port=int(port),
        job=_job_of(environ, topology),
        hosted=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def address_of(host: str) -> str:
    """``host`` where its name resolves, else the address that SLURM has for the node, else ``host``."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return _node_address(host) or host
    return host


def _node_address(host: str) -> str | None:
    """NodeAddr of a node; None where SLURM does not answer."""
    if host.startswith("-"):
        return None
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(  # noqa: S603 - no shell, and the name of a node from SLURM itself
            ["scontrol", "show", "node", host, "-o"],  # noqa: S607 - wherever the site has it
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SCONTROL_SECONDS,
            check=True,
        ).stdout
        found = re.search(r"(?:^|\s)NodeAddr=(\S+)", told)
        return None if found is None else found[1]
    return None


def _port_of(environ: Mapping[str, str]) -> int:
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    job, step, restarts = (int(value) if value.isdecimal() else 0 for value in _values(environ, names))
    # Steps and restarts far from the ids of the next jobs: what is left of one may hold its port yet.
    return _FIRST_PORT + (job + 4099 * step + 1031 * restarts) % _PORTS


def _job_of(environ: Mapping[str, str], topology: Topology) -> str:
    """The same text in all processes of a job, another in most other jobs."""
    names: tuple[str, ...] = ("KETOS_ATTEMPT", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")
    if "RANK" not in environ:
        # Another launcher may have been started on each node by a step of its own.
        names += ("SLURM_STEP_ID",)
    told = [f"{name}={value}" for name, value in zip(names, _values(environ, names), strict=True) if value]
    return ", ".join([f"{topology.world_size} processes", *told])


def _values(environ: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    return [environ.get(name, "") for name in names]
