"""What an index needs of images and does not find stored: sizes, checksums and keys, from their bytes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from distrib.shards.arrow_schema import content_key
from distrib.shards.png import png_sizes

_READ_BYTES: Final = 8 << 20
"""Bytes of images read at once, so that memory does not grow with a foreign file's record batches."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Of N images (N,): sizes in pixels, 0 without a PNG header; zlib's CRC-32; content keys."""

    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    crcs: npt.NDArray[np.uint32]
    keys: npt.NDArray[np.uint64]


def read_image_facts(
    file: BinaryIO, offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int32], texts: Sequence[str | None]
) -> ImageFacts:
    """Facts about the N images at ``offsets`` (N,) of ``sizes`` (N,) bytes, ascending, and their texts.

    The file is read, not mapped: all of it passes through, and mapped pages would count as ours. Raises
    OSError, also where the file ends before an image does.
    """
    count = len(offsets)
    widths, heights = np.zeros((2, count), dtype=np.int32)
    crcs, keys = np.zeros(count, dtype=np.uint32), np.zeros(count, dtype=np.uint64)
    ends = offsets + sizes
    for first, last in _runs(offsets, ends):
        base = int(offsets[first])
        data = _read(file, base, int(ends[first:last].max()) - base)
        starts, stops = offsets[first:last] - base, ends[first:last] - base
        widths[first:last], heights[first:last] = png_sizes(
            np.frombuffer(data, dtype=np.uint8), starts, stops
        )
        view = memoryview(data)
        for row, start, stop in zip(range(first, last), starts.tolist(), stops.tolist(), strict=True):
            image = view[start:stop]
            crcs[row] = zlib.crc32(image)
            keys[row] = content_key((texts[row] or "").encode(), image)
    return ImageFacts(widths=widths, heights=heights, crcs=crcs, keys=keys)


def _runs(offsets: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose images lie within ``_READ_BYTES``, at least one a range."""
    first = 0
    while first < len(offsets):
        last = int(np.searchsorted(ends, offsets[first] + _READ_BYTES, side="right"))
        last = max(last, first + 1)
        yield first, last
        first = last


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    pieces, descriptor = [], file.fileno()
    while size > 0:
        piece = os.pread(descriptor, size, offset)
        if not piece:
            raise OSError("the file ends before its last image")
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
