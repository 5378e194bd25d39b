"""Normalised lines kept on a disk of the node, so that each is straightened once and not in every epoch."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from distrib.shards.cache_folder import Busy, Lock

__all__ = ["LineCache"]

FOLDER = "lines"
"""The sub-folder of the cache directory that the databases lie in."""

COMPRESS_LEVEL = 1
"""zlib level. Of 60 fraktur lines of 120 x 1460 pixels a line takes 54 kB, 1.3 ms to pack and 0.4 ms to
unpack; as PNG of the same level 51 kB, 2.6 ms and 1.1 ms."""

PAGE_BYTES = 8192
"""Of pages of 4 to 64 KiB the quickest to write blobs of 55 kB to (0.2 ms, each in its own transaction;
sixteen in one are no quicker) and near the quickest to read (0.04 ms). Tables without rowid read five times
slower."""

BUSY_MILLISECONDS = 1000
SURVEY_SECONDS = 60.0
_WAL_BYTES = 16 << 20
_MAX_DIMENSIONS = 4
_SIDE_FILES = ("", "-wal", "-shm")

_log = logging.getLogger("distrib")

Result = TypeVar("Result")


class LineCache:
    """Arrays of uint8 by key in ``directory/lines/<digest>.sqlite``, shared by the processes of a node.

    ``digest`` stands for everything but the line that its array depends on: height, straightening, version.
    The databases of all digests together stay within ``max_bytes``, save for 16 MiB of log each; those not
    in use go first, and when that is not enough nothing more is put. The directory must lie on a disk of
    the node.

    Safe to use from several threads; pickles as its settings; opened when first used, in each process anew.
    Nothing that happens to the database stops a run: trouble turns the cache off after one warning.
    """

    def __init__(self, directory: Path, digest: str, max_bytes: int) -> None:
        """Raises ValueError for a digest that is no plain file name."""
        if not re.fullmatch(r"[\w-]{1,128}", digest, flags=re.ASCII):
            raise ValueError(f"{digest!r} cannot be the name of a line cache")
        self.directory = directory
        self.digest = digest
        self.max_bytes = max_bytes
        self._process = _Process()
        # Connections inherited over a fork: closing them here would disturb the parent's.
        self._inherited: list[_Process] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return LineCache, (self.directory, self.digest, self.max_bytes)

    @property
    def path(self) -> Path:
        """The database; it may not exist yet."""
        return self.directory / FOLDER / f"{self.digest}.sqlite"

    def get(self, key: bytes) -> npt.NDArray[np.uint8] | None:
        """The array put under ``key``, not writable; None where there is none."""
        row = self._guarded(
            lambda connection: connection.execute("SELECT value FROM lines WHERE key = ?", (key,)).fetchone()
        )
        if row is None:
            return None
        array = _unpack(row[0])
        if array is None:
            self._guarded(lambda connection: connection.execute("DELETE FROM lines WHERE key = ?", (key,)))
        return array

    def put(self, key: bytes, array: npt.NDArray[np.uint8]) -> None:
        """Keep an array of up to 4 dimensions under ``key``, unless one is kept there or there is no room."""
        process = self._here()
        if process.off or process.full:
            return
        value = _pack(array)

        def insert(connection: sqlite3.Connection) -> None:
            if self._has_room(process, connection, len(value)):
                connection.execute("INSERT OR IGNORE INTO lines VALUES (?, ?)", (key, value))

        self._guarded(insert, writing=True)

    def close(self) -> None:
        """Close the database; the next use opens it again."""
        process = self._here()
        with process.lock:
            process.close()
        self._process = _Process()

    def _here(self) -> _Process:
        if self._process.pid != os.getpid():
            self._inherited.append(self._process)
            self._process = _Process()
        return self._process

    def _guarded(
        self, action: Callable[[sqlite3.Connection], Result], *, writing: bool = False
    ) -> Result | None:
        """What ``action`` makes of the connection, alone in this process; None while the cache is off."""
        process = self._here()
        with process.lock:
            try:
                if process.connection is None and not process.off:
                    self._open(process)
                return action(process.connection) if process.connection is not None else None
            except (sqlite3.Error, OSError, Busy) as error:
                self._trouble(process, error, writing=writing)
                return None

    def _open(self, process: _Process) -> None:
        if self.max_bytes <= 0:
            process.off = True
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._opening():
            process.hold(self.path.with_suffix(".lock"))
            try:
                process.connection = _connect(self.path)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._warn_once(process, f"was damaged ({error}) and begins anew")
                _delete(self.path)
                process.connection = _connect(self.path)
            process.inode = self.path.stat().st_ino

    def _opening(self) -> Lock:
        """Alone among the processes of the node in opening, replacing and deleting databases."""
        return Lock(self.path.parent / ".lock", wait=True, remove=False)

    def _trouble(self, process: _Process, error: Exception, *, writing: bool) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if isinstance(error, sqlite3.OperationalError) and "locked" in reason:
            # Others wrote all the while; the line is simply not kept.
            return
        if isinstance(error, sqlite3.OperationalError) and writing and process.connection is not None:
            # Mostly a full disk. What was put before it can still be got.
            process.full = True
            self._warn_once(process, f"takes no more lines ({reason}); free some of its disk")
            return
        if _is_damage(error) and process.connection is not None and not process.replaced:
            process.replaced = True
            if self._replace(process, reason):
                return
        process.off = True
        process.close()
        self._warn_once(process, f"cannot be used ({reason}), so lines are normalised in every epoch")

    def _replace(self, process: _Process, reason: str) -> bool:
        """Delete a damaged database, unless another process has done so already; False where that fails."""
        try:
            with self._opening():
                # Compared before closing: after it, a new database may have got the number of the old one.
                replaced = process.inode != _inode(self.path)
                process.close()
                if not replaced:
                    _delete(self.path)
                    self._warn_once(process, f"was damaged ({reason}) and begins anew")
        except (OSError, Busy):
            return False
        return True

    def _warn_once(self, process: _Process, what: str) -> None:
        if not process.warned:
            process.warned = True
            _log.warning("The cache of lines %s %s.", self.path, what)

    def _has_room(self, process: _Process, connection: sqlite3.Connection, size: int) -> bool:
        pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
        wanted = pages * PAGE_BYTES + size
        if wanted > self.max_bytes:
            return False
        is_short = wanted + process.others > self.max_bytes
        if time.monotonic() >= process.next_survey or (is_short and process.made_room):
            with self._opening():
                process.others = _make_room(self.path, self.max_bytes - wanted)
            process.made_room = wanted + process.others <= self.max_bytes
            process.next_survey = time.monotonic() + SURVEY_SECONDS
        return wanted + process.others <= self.max_bytes


class _Process:
    """What one process holds: its connection, and the lock that says the database is in use."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.connection: sqlite3.Connection | None = None
        self.inode: int | None = None
        # Bytes of the other databases when they were last counted, and whether that left room.
        self.others = 0
        self.made_room = True
        self.next_survey = -math.inf
        self.off = self.full = self.replaced = self.warned = False
        self._in_use = -1

    def hold(self, path: Path) -> None:
        """Mark the database as in use for as long as this process lives or until ``close``."""
        if self._in_use >= 0:
            return
        self._in_use = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self._in_use, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Says when it was last used, too.
        os.utime(self._in_use)

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        if self._in_use >= 0:
            os.close(self._in_use)
            self._in_use = -1


def _connect(path: Path) -> sqlite3.Connection:
    """A connection under which a killed process damages nothing; after a power cut the cache may be lost."""
    connection = sqlite3.connect(
        path, timeout=BUSY_MILLISECONDS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        for pragma in (
            f"page_size={PAGE_BYTES}",
            "journal_mode=WAL",
            "synchronous=OFF",
            f"wal_autocheckpoint={_WAL_BYTES // PAGE_BYTES}",
            # KiB of pages in memory, of which there is no use in more.
            "cache_size=-2000",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE IF NOT EXISTS lines (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        # Reads what a first use will read, so that a file that is no database is found out here.
        connection.execute("SELECT value FROM lines WHERE key = x''").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _is_damage(error: Exception) -> bool:
    # SQLite's "malformed" and "not a database" are DatabaseErrors themselves; subclasses stand for the rest.
    return type(error) is sqlite3.DatabaseError


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _bytes(path: Path) -> int:
    total = 0
    for ending in _SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            total += path.with_name(path.name + ending).stat().st_size
    return total


def _delete(path: Path) -> None:
    for ending in _SIDE_FILES:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _make_room(own: Path, allowed: int) -> int:
    """Delete other databases that nobody uses, the oldest first; returns bytes of those that remain."""
    # A database of ours has a lock beside it; any other file is somebody else's.
    found = (path for path in own.parent.glob("*.sqlite") if path.with_suffix(".lock").exists())
    others = {path: _bytes(path) for path in found if path != own}
    held = sum(others.values())
    for path in sorted(others, key=_last_used):
        if held <= allowed:
            break
        lock = path.with_suffix(".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete(path)
            lock.unlink(missing_ok=True)
            held -= others[path]
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return held


def _last_used(path: Path) -> float:
    for candidate in (path.with_suffix(".lock"), path):
        with contextlib.suppress(FileNotFoundError):
            return candidate.stat().st_mtime
    return 0.0


def _pack(array: npt.NDArray[np.uint8]) -> bytes:
    """Number of dimensions (one byte), each of them (uint32, little endian), zlib stream of the pixels."""
    if array.dtype != np.uint8 or not 1 <= array.ndim <= _MAX_DIMENSIONS:
        raise ValueError(f"a line is kept as uint8 of 1 to {_MAX_DIMENSIONS} dimensions, not {array.dtype}")
    header = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return header + zlib.compress(np.ascontiguousarray(array).data, COMPRESS_LEVEL)


def _unpack(value: Any) -> npt.NDArray[np.uint8] | None:
    """The array, or None for what ``_pack`` cannot have made."""
    try:
        dimensions = value[0]
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            return None
        shape = struct.unpack_from(f"<{dimensions}I", value, 1)
        size = math.prod(shape)
        stream = zlib.decompressobj()
        # One byte more than wanted: without a limit, a damaged value may unpack to any size.
        pixels = stream.decompress(memoryview(value)[1 + 4 * dimensions :], size + 1)
        if len(pixels) != size or not stream.eof:
            return None
        return np.frombuffer(pixels, dtype=np.uint8).reshape(shape)
    except (struct.error, zlib.error, TypeError, IndexError, OverflowError):
        return None
