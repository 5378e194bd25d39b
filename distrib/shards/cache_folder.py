"""The folder in which the processes of a node keep copies of remote shards, and how they share it.

Three kinds of files lie in it, and nothing else in it is ever counted or deleted:

    <name>.<32 hex>.cached.arrow    a whole copy; its modification time says when it was last used
    .<that>.<8 hex>.part            one being written, of its full size from the start, locked by its writer
    .<that>.lock, .lock             who fills a copy; who counts and deletes

Locks are ``flock``s, which go with the process that holds them, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

POLL_SECONDS = 0.02
STALLED_SECONDS = 60.0
"""A lock whose holder gave no sign of life for so long is not waited for."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_COPY = re.compile(r"[^.].*\.(?P<address>[0-9a-f]{16})[0-9a-f]{16}\.cached(\.\w{1,10})?")
_PART = re.compile(r"\..+\.cached(\.\w{1,10})?\.[0-9a-f]{8}\.part")
_LOCK = re.compile(r"\..+\.cached(\.\w{1,10})?\.lock")


class Busy(Exception):
    """Another process holds the lock."""


class NoRoom(Exception):
    """What may be deleted does not make enough room at the moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """What a copy of one version of a remote shard is called, and its bytes."""

    name: str
    size: int


def name_copy(address: str, *, shown_name: str, size: int, version: str) -> Copy:
    """The copy of what ``address`` held when it had this size and version (an etag, a time, or empty)."""
    safe = re.sub(r"[^\w.-]", "_", shown_name, flags=re.ASCII).strip(".")[-80:] or "shard"
    stem, dot, suffix = safe.rpartition(".")
    if not dot or not re.fullmatch(r"\w{1,10}", suffix):
        stem, suffix = safe, ""
    digest = address_digest(address) + _digest(f"{address}\n{size}\n{version}")
    return Copy(name=f"{stem or 'shard'}.{digest}.cached" + (f".{suffix}" if suffix else ""), size=size)


def address_digest(address: str) -> str:
    """The part of a copy's name that all versions of an address share."""
    return _digest(address)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class CacheFolder:
    """Copies of at most ``max_bytes`` bytes, those being written included. Methods raise OSError."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def find(self, copy: Copy) -> Path | None:
        """The path of a whole copy, marked as used now; None where there is none."""
        path = self.folder / copy.name
        try:
            if path.stat().st_size != copy.size:
                # Not ours to trust: cut by a crashed file system, or by somebody.
                path.unlink()
                return None
        except (FileNotFoundError, NotADirectoryError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    @contextmanager
    def filling(self, copy: Copy, *, wait: bool) -> Iterator[Lock]:
        """Alone among the processes of the node in writing this copy.

        Raises Busy where another does: at once if not ``wait``, else when that one has stalled.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with Lock(self.folder / f".{copy.name}.lock", wait=wait, remove=True) as lock:
            yield lock

    def reserve(self, copy: Copy, *, keep: frozenset[str] = frozenset()) -> Part:
        """A file to write the copy to, after deleting those used longest ago where room is short.

        ``keep`` are address digests whose copies are not deleted. Raises NoRoom.
        """
        with self._counting():
            self._remove_stale()
            self._evict(self._held() + copy.size - self.max_bytes, keep)
            return Part(self.folder / f".{copy.name}.{secrets.token_hex(4)}.part", copy.size)

    def make_room(self, size: int, *, keep: frozenset[str] = frozenset()) -> None:
        """Delete copies of ``size`` bytes in sum, or all. Raises NoRoom where there is none to delete."""
        with self._counting():
            free = sum(status.st_size for _, status in self._copies(keep))
            if not free:
                raise NoRoom
            self._evict(min(size, free), keep)

    def commit(self, part: Part, copy: Copy) -> Path:
        """Give a written part its name."""
        part.sync()
        with self._counting():
            # Under the lock, for a file renamed while another process lists the folder may be missed by it.
            path = self.folder / copy.name
            part.rename(path)
            return path

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with Lock(self.folder / ".lock", wait=True, remove=False):
            yield

    def _entries(self, pattern: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    def _copies(self, keep: frozenset[str]) -> list[tuple[Path, os.stat_result]]:
        entries = self._entries(_COPY)
        return [item for item in entries if _address_of(item[0]) not in keep]

    def _held(self) -> int:
        return sum(status.st_size for pattern in (_COPY, _PART) for _, status in self._entries(pattern))

    def _evict(self, wanted: int, keep: frozenset[str]) -> None:
        if wanted <= 0:
            return
        chosen = []
        for path, status in sorted(self._copies(keep), key=lambda item: item[1].st_mtime_ns):
            chosen.append(path)
            wanted -= status.st_size
            if wanted <= 0:
                break
        else:
            raise NoRoom
        for path in chosen:
            path.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Remove what killed processes left: parts and locks that nobody holds."""
        for path, _ in self._entries(_PART):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    if _try_lock(descriptor):
                        path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)
        for path, _ in self._entries(_LOCK):
            with contextlib.suppress(Busy), Lock(path, wait=False, remove=True):
                pass


def _address_of(path: Path) -> str:
    match = _COPY.fullmatch(path.name)
    return match["address"] if match else ""


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Lock:
    """An exclusive ``flock`` while the ``with`` block runs; ``remove`` leaves no file behind.

    Entering raises Busy where another holds it: at once without ``wait``, else once its holder stalls.
    """

    def __init__(self, path: Path, *, wait: bool, remove: bool) -> None:
        self._path = path
        self._wait = wait
        self._remove = remove
        self._descriptor = -1

    def __enter__(self) -> Lock:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._await(descriptor)
                # The holder before may have removed the file that is locked now: then it locks nothing.
                if self._is_at_path(descriptor):
                    self._descriptor = descriptor
                    self.beat()
                    return self
            finally:
                if self._descriptor != descriptor:
                    os.close(descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        try:
            if self._remove:
                self._path.unlink(missing_ok=True)
        finally:
            # A child forked meanwhile shares the lock, and closing alone would leave it locked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def beat(self) -> None:
        """Tell those who wait that the holder gets on."""
        os.utime(self._descriptor)

    def _await(self, descriptor: int) -> None:
        while not _try_lock(descriptor):
            if not self._wait or time.time() - os.fstat(descriptor).st_mtime > STALLED_SECONDS:
                raise Busy(str(self._path))
            time.sleep(POLL_SECONDS)

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False


class Part:
    """A new file of ``size`` bytes to write a copy to; leaving the ``with`` block unrenamed removes it."""

    def __init__(self, path: Path, size: int) -> None:
        self._path: Path | None = path
        self._size = size
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _try_lock(self._descriptor)
            # Its size is what it will be, so that others count it as such.
            os.truncate(self._descriptor, size)
        except BaseException:
            self.close()
            raise

    def allocate(self) -> None:
        """Claim the space on the disk; raises OSError (full) before anything was downloaded in vain."""
        try:
            os.posix_fallocate(self._descriptor, 0, self._size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        """After a power cut, a file that was renamed but not flushed has its full size and holds zeros."""
        os.fdatasync(self._descriptor)

    def rename(self, path: Path) -> None:
        if self._path is not None:
            self._path.rename(path)
            self._path = None

    def __enter__(self) -> Part:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was not renamed; once only."""
        try:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
