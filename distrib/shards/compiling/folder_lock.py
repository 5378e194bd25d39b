"""A lock on a folder that other processes respect and that a killed process does not leave behind."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

_IN_USE: Final = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderInUse(Exception):
    """Another process holds the lock."""


class FolderLock:
    """Holds the lock ``folder / name`` until closed; the folder is made if need be.

    File systems without locks (some Lustre mounts) are used without.

    Raises:
        FolderInUse: another process holds it.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._descriptor = -1
        while self._descriptor < 0:
            self._descriptor = _try_lock(folder, folder / name)

    def close(self) -> None:
        """Let others have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _try_lock(folder: Path, path: Path) -> int:
    """A descriptor that holds the lock; -1 where the folder was removed at that moment."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _IN_USE:
            os.close(descriptor)
            raise FolderInUse from error
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    if _is_still(path, descriptor):
        return descriptor
    os.close(descriptor)
    return -1


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file locked is the one under this name: its last owner may just have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
