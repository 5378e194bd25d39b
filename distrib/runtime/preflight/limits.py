"""What the system grants a process: open files, and shared memory for what reader processes hand over."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distrib.wording import size

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
_LEAST_FILES = 1024
_FILES_A_WORKER = 96
"""A batch is handed over as six tensors, each an open file, four batches a worker, in two loaders, twice
over."""


@dataclass(frozen=True, kw_only=True)
class OpenFiles:
    """Files that a process may hold open (None: any), how many it may need, whether the limit was raised."""

    limit: int | None
    wanted: int
    raised: bool


def raise_open_files(*, workers: int, world_size: int) -> OpenFiles:
    """Let this process, and the readers it will start, hold as many files open as they may need.

    The soft limit (``ulimit -n``) is raised as far as the hard one allows; it is never lowered.
    """
    wanted = max(_LEAST_FILES, 256 + _FILES_A_WORKER * workers + 8 * world_size)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return OpenFiles(limit=None, wanted=wanted, raised=False)
    if soft >= wanted:
        return OpenFiles(limit=soft, wanted=wanted, raised=False)
    limit = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):  # a sandbox forbids it
        return OpenFiles(limit=soft, wanted=wanted, raised=False)
    return OpenFiles(limit=limit, wanted=wanted, raised=limit > soft)


def open_files_warning(files: OpenFiles, host: str) -> str | None:
    """The sentence for a limit that may be too low."""
    if files.limit is None or files.limit >= files.wanted:
        return None
    return (
        f"Warning: {host} lets a process open {files.limit} files, and {files.wanted} may be needed; raise "
        "the hard limit (`ulimit -Hn`; LimitNOFILE of the scheduler's service), or lessen --workers."
    )


@dataclass(frozen=True, kw_only=True)
class HandedOver:
    """Bytes in shared memory of one training process at once: ``least`` when its readers are at work with
    batches of average width, ``most`` with the widest, a validation beside."""

    workers: int
    least: int
    most: int


def shared_memory_free(
    folder: Path = SHARED_MEMORY, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
) -> int | None:
    """Free bytes of shared memory; None where the system does not say."""
    try:
        found = statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def shared_memory_problem(free: int | None, needs: HandedOver, processes: int, host: str) -> tuple[str, bool]:
    """What is to be said of ``free`` bytes for as many processes of a host, and whether they cannot do.

    The sentence is empty where there is enough.
    """
    if free is None or not needs.workers or free >= needs.most * processes:
        return "", False
    fatal = free < needs.least * processes
    most = size((needs.least if fatal else needs.most) * processes)
    return (
        f"{'' if fatal else 'Warning: '}{host} has {size(free)} of shared memory free ({SHARED_MEMORY}), and "
        f"{needs.workers * processes} reader processes {'hand' if fatal else 'may hand'} over {most} there; "
        f"start the container with --shm-size (docker) or more, or lessen --workers (0 needs none) or "
        "--batch-size."
    ), fatal
