"""What a source's lines depend on, as one digest: equal digests give equal lines."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Final

from distrib.ground_truth.pairs import find_text_file
from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.reader import read_page
from distrib.ground_truth.records import FormatType, LineType

EXTRACTION_VERSION: Final = 1
"""To be raised whenever the same files give other lines than before."""

DIGEST_BYTES: Final = 16
_CHUNK: Final = 1 << 20


def source_digest(
    source: Path, *, format_type: FormatType, linetype: LineType | None, settings: bytes
) -> bytes:
    """16 bytes over a source's name, its files and ``settings``.

    The files are the source itself, the page image it names and the text of a line pair. The name is that
    without the folder: lines carry it, and a collection may be moved. Never raises for bad data: a source
    without usable ground truth is told by its bytes and by what is wrong with it.
    """
    digest = blake2b(digest_size=DIGEST_BYTES)
    _add(digest, settings)
    _add(digest, source.name.encode("utf-8", "surrogatepass"))
    _add_file(digest, source)
    try:
        page, _ = read_page(source, format_type=format_type, linetype=linetype)
        if format_type == "path":
            _add_file(digest, find_text_file(source))
        else:
            _add_file(digest, page.image)
    except SourceProblem as problem:
        detail = problem.detail.replace(str(source.parent), "")
        _add(digest, f"{problem.reason.value}: {detail}".encode("utf-8", "surrogatepass"))
    return digest.digest()


def digest_key(digest: bytes) -> int:
    """64 bits of a digest, to look it up by."""
    return int.from_bytes(digest[:8], "big")


def _add(digest: blake2b, content: bytes) -> None:
    digest.update(len(content).to_bytes(8, "little") + content)


def _add_file(digest: blake2b, path: Path) -> None:
    """The length and content of a file; why it cannot be read, where it cannot."""
    try:
        with path.open("rb") as file:
            content = blake2b(digest_size=DIGEST_BYTES)
            while chunk := file.read(_CHUNK):
                content.update(chunk)
        _add(digest, content.digest())
    except (OSError, ValueError) as error:  # ValueError: a name from outside may hold a NUL
        _add(digest, f"unreadable: {type(error).__name__}".encode())
