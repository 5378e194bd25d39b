"""Bytes of shards by position, wherever the shards lie.

Local shards are read with ``pread`` from a few descriptors that stay open, remote ones from their copy in
the node's cache or, without one, by range requests. Nothing is mapped, so memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from distrib.errors import InputError
from distrib.shards.remote import (
    RemoteDiskFull,
    RemoteError,
    RemoteMissing,
    is_remote,
    local_file,
    remote_call,
    shown_address,
)

if TYPE_CHECKING:
    from distrib.shards.cache import ShardCache

__all__ = ["ShardStorage", "UnreadableLine"]

OPEN_FILES = 64
"""Descriptors a process keeps open at most; more shards than that are seldom read at once."""

REST_SECONDS = 5.0
"""How often copies in the cache are marked as used, and those that are not used and deleted let go."""


class UnreadableLine(ValueError):
    """One line, or the shard it lies in, cannot be read; ``reason`` is a sentence that names the shard."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ShardStorage:
    """Reads byte ranges of shards by address: a local path, ``file://``, or any fsspec address.

    Safe to use from several threads. Pickles without its descriptors; in a forked process it starts with
    none. A descriptor outlives the deletion of its file, so a shard that is read stays readable.
    """

    def __init__(self, cache: ShardCache | None = None) -> None:
        self.cache = cache
        self._process = _Process()

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardStorage, (self.cache,)

    def read(self, address: str, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes from byte ``offset`` of the shard.

        Raises:
            UnreadableLine: the shard is missing, may not be read, ends too early, or fails to be read.
        """
        if not is_remote(address):
            return self._read_local(address, offset, size)
        data = self._read_copy(address, offset, size)
        return self._read_range(address, offset, size) if data is None else data

    def size(self, address: str) -> int:
        """Bytes of the shard. Raises InputError where it is missing or does not tell."""
        if not is_remote(address):
            try:
                return local_file(address).stat().st_size
            except OSError as error:
                raise InputError(_local_problem(address, error)) from error
        size = _at_start(address, lambda filesystem, path: filesystem.info(path).get("size"))
        if size is None:
            raise InputError(
                f"{shown_address(address)} does not tell its size, so parts of it cannot be read; "
                "copy it to a disk first."
            )
        return int(size)

    def exists(self, address: str) -> bool:
        """True where there is a file or folder. Raises InputError where that cannot be found out."""
        if not is_remote(address):
            return local_file(address).exists()
        try:
            remote_call(address, lambda filesystem, path: filesystem.info(path))
        except RemoteMissing:
            return False
        except RemoteError as error:
            raise InputError(str(error)) from error
        return True

    def open_binary(self, address: str) -> BinaryIO:
        """The whole shard, open for reading; remote ones are read as a stream. Raises InputError."""
        if is_remote(address):
            return cast(BinaryIO, _at_start(address, lambda filesystem, path: filesystem.open(path, "rb")))
        try:
            return local_file(address).open("rb")
        except OSError as error:
            raise InputError(_local_problem(address, error)) from error

    def local_path(self, address: str) -> Path:
        """A file with the bytes of the shard, downloaded where it is remote.

        The file is the cache's, which may delete it when it needs the room, or lies in a temporary folder
        that goes when this process ends: open it at once. Raises InputError.
        """
        if not is_remote(address):
            path = local_file(address)
            if not path.exists():
                raise InputError(_local_problem(address, FileNotFoundError()))
            return path
        cached = self.cache.fetch(address) if self.cache else None
        return cached if cached is not None else self._here().download(address)

    def close(self) -> None:
        """Close the descriptors and remove what was downloaded outside of the cache; reading opens anew."""
        self._process = _Process()

    def _here(self) -> _Process:
        # A forked child may have inherited a lock that a thread of its parent held, so it begins afresh.
        if self._process.pid != os.getpid():
            self._process = _Process()
        return self._process

    def _read_local(self, address: str, offset: int, size: int) -> bytes:
        process = self._here()
        for attempt in (1, 2):
            try:
                file = process.find(address) or process.add(address, _OpenFile(local_file(address)))
                return file.read(offset, size)
            except _CutShort as problem:
                raise UnreadableLine(f"the shard {address} {problem}") from problem
            except OSError as error:
                process.drop(address)
                # A file on NFS that was replaced under its name is readable under a new descriptor.
                if error.errno != errno.ESTALE or attempt == 2:
                    raise UnreadableLine(_local_problem(address, error)) from error
        raise AssertionError("unreachable")

    def _read_copy(self, address: str, offset: int, size: int) -> bytes | None:
        """From the copy in the cache; None where there is none or it fails."""
        if self.cache is None:
            return None
        process = self._here()
        process.rest()
        # Another process may delete a copy between its being found and opened, to make room.
        for _ in range(3):
            file = process.find(address)
            try:
                if file is None:
                    path = self.cache.fetch(address)
                    if path is None:
                        return None
                    file = process.add(address, _OpenFile(path, copy=True))
                return file.read(offset, size)
            except FileNotFoundError:
                continue
            except (_CutShort, OSError):
                # The shard itself may be sound where the disk of the cache is not.
                process.drop(address)
                return None
        return None

    def _read_range(self, address: str, offset: int, size: int) -> bytes:
        try:
            data = remote_call(
                address, lambda filesystem, path: filesystem.cat_file(path, start=offset, end=offset + size)
            )
        except RemoteError as error:
            raise UnreadableLine(str(error)) from error
        if len(data) > size:
            raise UnreadableLine(
                f"{shown_address(address)}: its server sends no parts of files; give --cache-dir."
            )
        if len(data) < size:
            raise UnreadableLine(
                f"the shard {shown_address(address)} {_CutShort(offset, size, offset + len(data))}"
            )
        return bytes(data)


class _CutShort(Exception):
    def __init__(self, offset: int, size: int, end: int) -> None:
        super().__init__(f"is cut short: it ends at byte {end}, but {size} bytes from {offset} are wanted")


class _OpenFile:
    """A descriptor that closes when the last thread using it has let go of it."""

    __slots__ = ("_descriptor", "_size", "copy", "used")

    def __init__(self, path: Path, *, copy: bool = False) -> None:
        # Without O_NONBLOCK a pipe in the place of a shard would wait for a writer for ever.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        self._size = status.st_size
        self.copy = copy
        self.used = True

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        # Asked before reading: memory for a size out of a broken index would be taken first.
        if offset + size > self._size:
            raise _CutShort(offset, size, self._size)
        self.used = True
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise _CutShort(offset, size, offset + len(data))
            data += more
        return data

    def deleted(self) -> bool:
        return os.fstat(self._descriptor).st_nlink == 0

    def touch(self) -> None:
        # A cache that turned read-only still serves what it has.
        with contextlib.suppress(OSError):
            os.utime(self._descriptor)


class _Process:
    """What one process holds open: the shards it read last, and whole downloads outside of the cache."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._rested = time.monotonic()
        self._folder: _TemporaryFolder | None = None
        self._downloads: dict[str, Path] = {}
        self._download_lock = threading.Lock()

    def find(self, address: str) -> _OpenFile | None:
        with self._lock:
            file = self._files.get(address)
            if file is not None:
                self._files.move_to_end(address)
            return file

    def add(self, address: str, file: _OpenFile) -> _OpenFile:
        with self._lock:
            file = self._files.setdefault(address, file)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
            return file

    def drop(self, address: str) -> None:
        with self._lock:
            self._files.pop(address, None)

    def rest(self) -> None:
        """Now and then mark the copies that are read as used, and let go of deleted ones that are not.

        A deleted file takes space until it is closed, so the cache would otherwise outgrow its bound.
        """
        if time.monotonic() - self._rested < REST_SECONDS:
            return
        with self._lock:
            self._rested = time.monotonic()
            for address, file in [item for item in self._files.items() if item[1].copy]:
                if file.used:
                    file.used = False
                    file.touch()
                elif file.deleted():
                    del self._files[address]

    def download(self, address: str) -> Path:
        """The whole shard in a temporary folder, once a process. Raises InputError."""
        with self._download_lock:
            if address not in self._downloads:
                self._folder = self._folder or _TemporaryFolder()
                target = self._folder.path / f"{len(self._downloads)}-{_file_name(address)}"
                try:
                    remote_call(address, lambda filesystem, path: filesystem.get_file(path, str(target)))
                except RemoteDiskFull as error:
                    raise InputError(
                        f"{shown_address(address)}: no space left for it in {target.parent}; "
                        "give --cache-dir on a larger disk."
                    ) from error
                except RemoteError as error:
                    raise InputError(str(error)) from error
                self._downloads[address] = target
            return self._downloads[address]


class _TemporaryFolder:
    """A folder removed with this object or at exit, by the process that made it and no forked child."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ketos-shards-"))
        weakref.finalize(self, _remove_own, self.path, os.getpid())


def _remove_own(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _file_name(address: str) -> str:
    return shown_address(address).rstrip("/").rpartition("/")[2][-120:]


def _at_start(address: str, action: Any) -> Any:
    try:
        return remote_call(address, action)
    except RemoteError as error:
        raise InputError(str(error)) from error


def _local_problem(address: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"the shard {address} does not exist (any more); check the path."
    if isinstance(error, PermissionError):
        return f"the shard {address} may not be read; change its permissions."
    return f"the shard {address} could not be read ({error.strerror or error}); check the file and its disk."
