"""Records of one JSON object a line, to which a run adds as it goes, whatever happens to it meanwhile."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_MOST_KEPT: Final = 10_000
"""Rows kept in memory while they cannot be written; of more the oldest are lost."""


class JsonLines:
    """Adds rows to a file, each with one write at its end; of one writer a file, from any of its threads.

    A row that cannot be written, as on a full disk, ends nothing: it is kept and written with the next. What
    an earlier process has torn, by being killed while it wrote, is left as a line of its own.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        """``sync`` waits until a row is on the disk; without, the last rows go if the machine fails."""
        self.path = path
        self._sync = sync
        self._lock = threading.Lock()
        self._kept: deque[bytes] = deque(maxlen=_MOST_KEPT)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. What JSON has no form for becomes a text: ``nan`` and ``inf``, paths, other objects."""
        line = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
        with self._lock:
            # Lone surrogates are what is left of file names in no encoding.
            self._kept.append(line.encode("utf-8", "backslashreplace") + b"\n")
            self._write()

    def flush(self) -> bool:
        """Write what could not be written before; whether nothing is left."""
        with self._lock:
            self._write()
            return not self._kept

    def _write(self) -> None:
        if not self._kept:
            return
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError:
            return
        try:
            rows = b"".join(self._kept)
            beginning = b"\n" if _is_torn(descriptor) else b""
            written = os.write(descriptor, beginning + rows) - len(beginning)
            # A disk that has just become full takes a part: the rows in it are not written again.
            while self._kept and written >= len(self._kept[0]):
                written -= len(self._kept.popleft())
            if self._sync:
                os.fsync(descriptor)
        except OSError:
            return
        finally:
            os.close(descriptor)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file in their order, without lines that are torn; none where there is no file.

    Raises OSError where it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _is_torn(descriptor: int) -> bool:
    """Whether the file does not end with the end of a line."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _plain(value: Any) -> Any:
    """``value`` in what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if value is None or isinstance(value, (str, int)):
        return value
    if callable(getattr(value, "tolist", None)):
        return _plain(value.tolist())  # numbers of numpy or torch
    return str(value)
