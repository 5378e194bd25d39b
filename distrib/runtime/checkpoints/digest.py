"""What tells whether a file is what was written: a digest for later, a quick checksum for now."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

_CHUNK = 1 << 20
"""Bytes read at once: the interpreter is free meanwhile, and no more than this is in memory."""


def new_digest() -> hashlib.blake2b:
    """An empty digest: BLAKE2b (RFC 7693) of 32 bytes."""
    return hashlib.blake2b(digest_size=32)


def file_digest(path: Path) -> str:
    """The digest of a file in hexadecimal. Raises OSError."""
    digest = new_digest()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def file_checksum(path: Path) -> int:
    """The CRC-32 of a file: enough against a disk that errs, and four times as fast. Raises OSError."""
    checksum = 0
    for chunk in _chunks(path):
        checksum = zlib.crc32(chunk, checksum)
    return checksum


def _chunks(path: Path) -> Iterator[memoryview]:
    """The bytes of a file; each chunk is good until the next is asked for."""
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield view[:count]
