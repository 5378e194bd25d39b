"""Whether the checkpoints that a run will keep fit on the disk of its directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from distrib.errors import InputError
from distrib.runtime.directory.run_directory import CHECKPOINTS
from distrib.wording import size

_OTHER_FILES = 100
"""Logs, ledgers and the exported file take about as many names."""

StatVfs = Callable[[Path], os.statvfs_result]


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes and names (None: unlimited, or not told) free on a disk, and what this run's checkpoints take.

    The free bytes do not know of quotas that the file system does not tell of.
    """

    free: int | None
    names: int | None
    taken: int


def checkpoint_bytes(network: nn.Module, *, optimizer_values: int) -> int:
    """About the bytes of a checkpoint: float32 weights, and ``optimizer_values`` more for each trained."""
    trained = sum(each.numel() for each in network.parameters() if each.requires_grad)
    kept = sum(each.numel() for each in (*network.parameters(), *network.buffers()))
    return 4 * (kept + optimizer_values * trained)


def room_in(directory: Path, *, statvfs: StatVfs = os.statvfs) -> Room:
    """The room in a run directory. What cannot be found out is None."""
    try:
        found = statvfs(directory)
    except OSError:
        return Room(free=None, names=None, taken=0)
    # Some file systems count neither blocks nor names, and say 0 of 0.
    return Room(
        free=found.f_bavail * found.f_frsize if found.f_blocks else None,
        names=found.f_favail if found.f_files else None,
        taken=_bytes_of(path for pattern in CHECKPOINTS for path in directory.glob(pattern)),
    )


def check_room(room: Room, directory: Path, *, checkpoint: int, kept: int, files_each: int = 1) -> list[str]:
    """Warnings where a run that keeps ``kept`` checkpoints of so many bytes will fill the disk.

    Two more are there for a moment while one takes the place of another. Raises InputError where not even
    two fit, as the one before goes only when the new one is whole.
    """
    needed = (kept + 2) * checkpoint
    remedy = "free some, choose another disk with -o, or keep fewer (--keep-best, --keep-last)"
    if room.free is not None:
        if room.free < checkpoint or room.free + room.taken < 2 * checkpoint:
            raise InputError(
                f"{directory}: {size(room.free)} free, and a checkpoint takes about {size(checkpoint)}, of "
                "which two must fit; free some, or choose another disk with -o."
            )
        if room.free + room.taken < needed:
            return [
                f"Warning: {directory} has {size(room.free)} free, and {kept + 2} checkpoints of "
                f"{size(checkpoint)} will take {size(needed)}; {remedy}."
            ]
    names = (kept + 2) * files_each + _OTHER_FILES
    if room.names is not None and room.names < names:
        return [
            f"Warning: the file system of {directory} has room for {room.names} more files (inodes), and the "
            f"run may make {names}; {remedy}."
        ]
    return []


def _bytes_of(paths: Iterable[Path]) -> int:
    """What files and folders of files take, each once however many links it has."""
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        with suppress(OSError):
            for file in path.iterdir() if path.is_dir() else (path,):
                found = file.stat()
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())
