"""Copies of remote shards on a disk of the node, shared by its processes and bounded in size."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distrib.shards.cache_folder import (
    DISK_FULL,
    Busy,
    CacheFolder,
    Copy,
    Lock,
    NoRoom,
    Part,
    address_digest,
    name_copy,
)
from distrib.shards.remote import RemoteError, is_remote, local_file, remote_call, shown_address

__all__ = ["ShardCache"]

FOLDER = "shards"
"""The sub-folder of the cache directory that is the cache's own."""

PIECE = 16 << 20
"""Bytes of one range request of a download."""

RETRY_SECONDS = 60.0
"""How long a shard that could not be downloaded, or a full disk, is left alone."""

ROOM_SECONDS = 2.0
"""How often the prefetching thread looks whether there is room again."""

# What says that a remote object is another one than before, the surest first.
_VERSION_KEYS = (
    *("ETag", "etag", "generation", "md5Hash", "content_md5", "checksum"),
    *("mtime", "LastModified", "last_modified", "modified", "updated", "created"),
)
_NEVER_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

_log = logging.getLogger("distrib")


class ShardCache:
    """Whole copies of remote shards in ``directory/shards``, at most ``max_bytes`` bytes of them.

    All processes of a node may share a directory, also those of different runs: a shard is downloaded by one
    of them while the others wait, and seen when it is whole. Copies used longest ago make room for new ones;
    one that is deleted while open takes its space until it is closed. The directory must lie on a disk of
    the node: locks on network file systems do not keep the processes of other nodes out.

    Pickles as its settings; survives fork. Nothing that happens to the cache stops a run: what it cannot
    hold is read from where it lies, after one warning.
    """

    def __init__(self, directory: Path, max_bytes: int, *, again_after: float = 60.0) -> None:
        """``again_after``: seconds before a shard that had to make room is downloaded by this process again.

        Reading a few lines by range is cheaper than downloading shards in a circle.
        """
        self.directory = directory
        self.max_bytes = max_bytes
        self.again_after = again_after
        self._folder = CacheFolder(directory / FOLDER, max_bytes)
        self._process = _Process()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.directory, self.max_bytes, self.again_after)

    def fetch(self, address: str) -> Path | None:
        """A local file with the bytes of the shard, downloaded if it is not there yet.

        None where it cannot be had: it does not fit, the disk is full or not writable, or the download
        failed; then read the shard by range. Open the file at once, for it may be deleted to make room
        (open descriptors keep it). The path itself for an address that is local.
        """
        if not is_remote(address):
            return local_file(address)
        try:
            return self._copy(address, keep=frozenset(), wait=True)
        except (NoRoom, Busy):
            return None

    def prefetch(self, addresses: Iterable[str]) -> None:
        """Download these shards in the background, in their order; they take the place of those asked before.

        Makes room by deleting copies of other shards only. Never raises.
        """
        process = self._here()
        wanted = list(dict.fromkeys(address for address in addresses if is_remote(address)))
        with process.changed:
            process.queue = deque(wanted)
            process.keep = frozenset(map(address_digest, wanted))
            process.changed.notify_all()
            if process.thread is None and wanted:
                thread = threading.Thread(
                    target=self._prefetch_all, args=(process,), name="prefetch", daemon=True
                )
                # Without threads left, shards are fetched when they are read.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    process.thread = thread

    def close(self) -> None:
        """Stop prefetching after the shard at hand; the copies stay."""
        process = self._here()
        with process.changed:
            process.queue.clear()
            process.closed = True
            process.changed.notify_all()
        self._process = _Process()

    def _here(self) -> _Process:
        # Threads do not survive a fork, and a lock that one of them held would stay locked.
        if self._process.pid != os.getpid():
            self._process = _Process()
        return self._process

    def _copy(self, address: str, *, keep: frozenset[str], wait: bool) -> Path | None:
        """The copy, made if need be; None where it cannot be. Raises NoRoom and Busy for what may pass."""
        process = self._here()
        try:
            copy = process.copies.get(address)
            path = self._folder.find(copy) if copy else None
            if path is not None:
                return path
            if self.max_bytes <= 0 or process.is_refused(address):
                return None
            if copy is None:
                copy = process.copies[address] = _describe(address)
                path = self._folder.find(copy)
            return path or self._fill(process, address, copy, keep=keep, wait=wait)
        except RemoteError as error:
            # Whoever reads the shard by range next gets this error, and reports it.
            _log.debug("not cached: %s", error)
            process.copies.pop(address, None)
            process.refuse(address, RETRY_SECONDS)
        except OSError as error:
            self._give_up(process, error)
        return None

    def _fill(
        self, process: _Process, address: str, copy: Copy, *, keep: frozenset[str], wait: bool
    ) -> Path | None:
        if copy.size > self.max_bytes:
            process.refuse(address, math.inf)
            process.warn_once(
                "large",
                f"The shard {shown_address(address)} ({copy.size} bytes) is larger than the cache "
                f"({self.max_bytes} bytes) and is read from where it lies; raise --cache-size.",
            )
            return None
        again = process.filled.get(address, -math.inf) + self.again_after - time.monotonic()
        if again > 0:
            process.refuse(address, again)
            process.warn_once(
                "small",
                f"The cache {self.directory} ({self.max_bytes} bytes) is too small for the shards that are "
                "read together, some of which are read from where they lie; raise --cache-size.",
            )
            return None
        with self._folder.filling(copy, wait=wait) as lock:
            path = self._folder.find(copy)
            if path is None:
                with self._reserve(copy, keep) as part:
                    _download(address, copy, part, lock)
                    path = self._folder.commit(part, copy)
                process.filled[address] = time.monotonic()
            return path

    def _reserve(self, copy: Copy, keep: frozenset[str]) -> Part:
        """A part with its space on the disk, for which older copies go where others have filled the disk."""
        for attempt in (1, 2):
            part = self._folder.reserve(copy, keep=keep)
            try:
                part.allocate()
                return part
            except OSError as error:
                part.close()
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or attempt == 2:
                    raise
                try:
                    self._folder.make_room(copy.size, keep=keep)
                except NoRoom:
                    raise error from None
        raise AssertionError("unreachable")

    def _give_up(self, process: _Process, error: OSError) -> None:
        lasting = error.errno in _NEVER_WRITABLE
        process.off_until = math.inf if lasting else time.monotonic() + RETRY_SECONDS
        remedy = "free some of it" if error.errno in DISK_FULL else "give a folder that can be written to"
        process.warn_once(
            "disk",
            f"Shards cannot be kept in the cache {self.directory} ({error.strerror or error}) and are read "
            f"from where they lie; {remedy}.",
        )

    def _prefetch_all(self, process: _Process) -> None:
        while True:
            with process.changed:
                process.changed.wait_for(lambda: process.queue or process.closed)
                if process.closed:
                    return
                queue, keep = process.queue, process.keep
                address = queue[0]
            try:
                # Where another process downloads it, this one goes on with the next.
                with contextlib.suppress(Busy):
                    self._copy(address, keep=keep, wait=False)
            except NoRoom:
                process.await_room(queue)
                continue
            # A thread that dies would end prefetching for the whole run, unseen.
            except Exception as error:
                _log.debug("prefetching %s failed: %r", shown_address(address), error)
            with process.changed:
                if process.queue is queue and queue:
                    queue.popleft()


class _Process:
    """What one process knows: versions of shards it met, what it shall not try again soon, its thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.copies: dict[str, Copy] = {}
        self.filled: dict[str, float] = {}
        self.off_until = -math.inf
        self._refused: dict[str, float] = {}
        self._warned: set[str] = set()
        self.changed = threading.Condition()
        self.queue: deque[str] = deque()
        self.keep: frozenset[str] = frozenset()
        self.closed = False
        self.thread: threading.Thread | None = None

    def await_room(self, queue: deque[str]) -> None:
        """Sleep for a while, or until other shards are wanted than those of ``queue``."""
        with self.changed:
            self.changed.wait_for(lambda: self.queue is not queue or self.closed, ROOM_SECONDS)

    def refuse(self, address: str, seconds: float) -> None:
        self._refused[address] = time.monotonic() + seconds

    def is_refused(self, address: str) -> bool:
        now = time.monotonic()
        return now < self.off_until or now < self._refused.get(address, -math.inf)

    def warn_once(self, about: str, sentence: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            _log.warning(sentence)


def _restore(directory: Path, max_bytes: int, again_after: float) -> ShardCache:
    return ShardCache(directory, max_bytes, again_after=again_after)


def _describe(address: str) -> Copy:
    """The copy of what lies under the address now. Raises RemoteError."""
    info = remote_call(address, lambda filesystem, path: filesystem.info(path))
    if info.get("size") is None or info.get("type", "file") != "file":
        raise RemoteError(f"{shown_address(address)} is no file of a known size, and cannot be cached.")
    return name_copy(
        address,
        shown_name=shown_address(address).rstrip("/").rpartition("/")[2],
        size=int(info["size"]),
        version=next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), ""),
    )


def _download(address: str, copy: Copy, part: Part, lock: Lock) -> None:
    """Write the shard to ``part`` in pieces. Raises RemoteError, also where it changes meanwhile."""
    position = 0
    while position < copy.size:
        end = min(position + PIECE, copy.size)
        data = _piece(address, position, end)
        # Servers without range requests send the whole file for its first piece.
        if len(data) != end - position and (position or len(data) != copy.size):
            raise RemoteError(f"{shown_address(address)} is shorter than it says, and cannot be cached.")
        part.write(position, data)
        position += len(data)
        lock.beat()
    if _describe(address) != copy:
        raise RemoteError(f"{shown_address(address)} changed while it was downloaded.")


def _piece(address: str, start: int, end: int) -> bytes:
    data: bytes = remote_call(
        address, lambda filesystem, path: filesystem.cat_file(path, start=start, end=end)
    )
    return data
