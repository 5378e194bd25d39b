"""One file of a checkpoint written to the disk, its digest known before it is read back from there."""

from __future__ import annotations

import io
import os
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from distrib.errors import RunError
from distrib.runtime.checkpoints.container import FORMAT
from distrib.runtime.checkpoints.digest import file_checksum, new_digest

_CHUNK = 1 << 20
"""Bytes hashed and written at once, while the interpreter is free for the training thread."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file on the disk: its bytes, and its digest in hexadecimal."""

    bytes: int
    digest: str


def write_container(path: Path, content: Mapping[str, Any]) -> Written:
    """Write ``content`` in torch's zip container to a new file; on the disk and read back on return.

    Raises OSError where the disk does not take it, RunError where it gives back something else.
    """
    with path.open("xb", buffering=0) as file:
        sink = _Sink(file)
        torch.save({"format": FORMAT, **content}, cast(BinaryIO, sink))
        return _settled(path, file, sink)


def write_bytes(path: Path, content: bytes) -> Written:
    """Write a new file; on the disk and read back on return. Raises as ``write_container`` does."""
    with path.open("xb", buffering=0) as file:
        sink = _Sink(file)
        sink.write(content)
        return _settled(path, file, sink)


def plain(value: Any, place: str = "common") -> Any:
    """A copy of ``value`` in the types of a checkpoint: dict, list, tuple, str, numbers, None, tensors.

    ``place`` stands for it in messages. Raises TypeError for anything else, which could not be read again.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (dict, OrderedDict, defaultdict):
        return {plain(key, place): plain(each, f"{place}[{key!r}]") for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(each, f"{place}[{number}]") for number, each in enumerate(value))
    if isinstance(value, Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    # Numbers and strings of other libraries, which are also these.
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{place} is a {type(value).__name__}, which a checkpoint cannot hold")


class _Sink(io.RawIOBase):
    """Takes what torch writes and hands it on, keeping account.

    An error is kept for later: torch's writer does not survive one. What follows it is dropped.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.digest = new_digest()
        self.checksum = 0
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Take all of ``data``."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.error is None:
            chunk = view[done : done + _CHUNK]
            try:
                count = self._file.write(chunk)
            except OSError as error:
                self.error = error
                break
            self.digest.update(chunk[:count])
            self.checksum = zlib.crc32(chunk[:count], self.checksum)
            done += count
        self.bytes += done
        return len(view)


def _settled(path: Path, file: io.FileIO, sink: _Sink) -> Written:
    """Flush the file, and see that the disk gives back what it was given."""
    if sink.error is not None:
        raise sink.error
    os.fsync(file.fileno())
    # Otherwise memory answers, which is not what is asked.
    with suppress(OSError, AttributeError):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if path.stat().st_size != sink.bytes or file_checksum(path) != sink.checksum:
        raise RunError(f"{path}: the disk does not give back what was written; use another disk.")
    return Written(bytes=sink.bytes, digest=sink.digest.hexdigest())
