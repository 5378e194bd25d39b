"""Files mapped into memory without keeping a descriptor, whose pages can be given back."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Final

import pyarrow as pa

_DONTNEED: Final[int | None] = getattr(mmap, "MADV_DONTNEED", None)


class MappedFile:
    """A whole file as ``buffer``, mapped read-only; its memory is the page cache's.

    Thousands may be mapped at once: the descriptor is closed as soon as the mapping stands. The mapping
    lives as long as ``buffer`` or anything cut from it does.

    Raises OSError and pa.ArrowException where the file cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path), "r") as file:
            self.buffer: pa.Buffer = file.read_buffer()

    def __len__(self) -> int:
        return int(self.buffer.size)

    def position(self, buffer: pa.Buffer) -> int | None:
        """Where in the file ``buffer`` lies; None where it is a copy that lies elsewhere in memory."""
        start = int(buffer.address) - int(self.buffer.address)
        return start if 0 <= start <= len(self) - buffer.size else None

    def release(self) -> None:
        """Give the pages touched so far back, or they would count as this process's memory.

        What is touched again is read again, from the page cache as a rule.
        """
        if _DONTNEED is not None and len(self):
            _advise(self.buffer.address, len(self), _DONTNEED)


def _advise(address: int, size: int, advice: int) -> None:
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None:
        # Its failure costs memory and nothing else, so the result is not asked for.
        advise(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(advice))
