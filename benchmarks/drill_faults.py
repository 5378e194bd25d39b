"""What else can happen to a run directory: damaged files, lost records, leases of the dead, full disks."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

FOREIGN_LEASE = "lease of another machine left"
_PAGE = 4096


def newest_checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints of a run directory, the newest first; `last.ckpt` is one of them again."""
    from distrib.errors import InputError
    from distrib.runtime.checkpoints.reader import open_checkpoint
    from distrib.runtime.checkpoints.record import newest_first

    whole = []
    for each in newest_first(directory):
        with suppress(InputError):
            open_checkpoint(each.path, verify=True)
            whole.append(each.path)
    return whole


def truncate_newest(directory: Path, draw: random.Random) -> Path | None:
    """Cut the newest checkpoint short anywhere; None where none would be left to go on from."""

    def cut(file: Path) -> None:
        os.truncate(file, draw.randrange(file.stat().st_size))

    return _damage(directory, draw, cut)


def flip_bit(directory: Path, draw: random.Random) -> Path | None:
    """Turn one bit of the newest checkpoint over; None where none would be left to go on from."""

    def flip(file: Path) -> None:
        with file.open("r+b") as content:
            place = draw.randrange(file.stat().st_size)
            content.seek(place)
            (byte,) = content.read(1)
            content.seek(place)
            content.write(bytes([byte ^ 1 << draw.randrange(8)]))

    return _damage(directory, draw, flip)


def tear_record(directory: Path, draw: random.Random) -> Path | None:
    """Cut the record of checkpoints short anywhere."""
    record = directory / "checkpoints.jsonl"
    if not record.exists() or not record.stat().st_size:
        return None
    os.truncate(record, draw.randrange(record.stat().st_size))
    return record


def remove_record(directory: Path, _: random.Random) -> Path | None:
    """Remove the record of checkpoints."""
    record = directory / "checkpoints.jsonl"
    if not record.exists():
        return None
    record.unlink()
    return record


def leave_lease(directory: Path, _: random.Random) -> Path | None:
    """Make the lease that a killed run has left look like that of a run on another machine."""
    lease = directory / "lease.json"
    try:
        holder = json.loads(lease.read_bytes())
    except (OSError, ValueError):
        return None
    holder["token"] = secrets.token_hex(16)
    holder["process"] |= {"host": "elsewhere", "boot_id": "another"}
    lease.write_bytes(json.dumps(holder).encode().ljust(2047) + b"\n")
    long_ago = time.time() - 60.0
    os.utime(lease, (long_ago, long_ago))
    return lease


def _damage(directory: Path, draw: random.Random, harm: Callable[[Path], None]) -> Path | None:
    whole = newest_checkpoints(directory)
    # `last.ckpt` may be all that is left of a name, or a link to the one that is harmed.
    files = [path for path in whole if not any(path.samefile(other) for other in whole[:1])]
    if not files:
        return None
    victim = whole[0]
    parts = sorted(victim.iterdir()) if victim.is_dir() else [victim]
    harm(draw.choice([part for part in parts if part.stat().st_size]))
    return victim


DAMAGES: dict[str, Callable[[Path, random.Random], Path | None]] = {
    "newest checkpoint truncated": truncate_newest,
    "newest checkpoint bit-flipped": flip_bit,
    "checkpoints.jsonl torn": tear_record,
    "checkpoints.jsonl removed": remove_record,
    FOREIGN_LEASE: leave_lease,
}


class SmallDisk:
    """A folder on a file system of its own that can be made full; where none may be mounted, a common one,
    and files that the job may not make longer stand for the full disk."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        words = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            self.mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
        except OSError:
            self.mounted = False
        self._ballast = folder / "ballast"
        self._limited: list[int] = []

    @property
    def kind(self) -> str:
        """How it gets full."""
        return "tmpfs" if self.mounted else "file size limit"

    def fill(self, ranks: Sequence[int], left: int) -> None:
        """Leave ``left`` bytes, for the processes ``ranks`` at least."""
        if not self.mounted:
            self._limited = list(ranks)
            self._limit(left)
            return
        with self._ballast.open("wb") as file:
            for _ in range(20):
                status = os.statvfs(self.folder)
                room = status.f_bavail * status.f_frsize - left // _PAGE * _PAGE
                if room <= 0:
                    return
                try:
                    # Files that are being written take their part meanwhile.
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the room back."""
        if self.mounted:
            self._ballast.unlink(missing_ok=True)
        else:
            self._limit(resource.RLIM_INFINITY)
            self._limited = []

    def close(self) -> None:
        """Take it away, with what is on it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def _limit(self, size: int) -> None:
        for pid in self._limited:
            with suppress(ProcessLookupError, PermissionError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
