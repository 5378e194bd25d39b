"""The samples of a tar in the WebDataset convention: members that share a name up to its first dot.

Only headers are read. What is no plain file is passed over; a tar that is cut short or damaged gives the
samples before that place.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from distrib.errors import InputError

BLOCK: Final = 512

_NOTES: Final = re.compile(r"__[^/.]*__(\.|/|$)")
"""Members that describe a tar as a whole: ``__…__``, or anything in a folder of such a name."""

_MAX_HEADER_BYTES: Final = 1 << 20
_COMPRESSED: Final = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
# What tarfile raises for headers that are nonsense; the library does not promise to wrap all of it.
_BAD_HEADER: Final = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    EOFError,
    IndexError,
    KeyError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar: where its bytes lie."""

    offset: int
    size: int


@dataclass(slots=True)
class Sample:
    """Members of one key, by what stands after the first dot of their names, in lower case.

    ``repeated`` is set where a name occurs twice; the first stands.
    """

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    repeated: bool = False


class TarSamples:
    """The samples of a tar, to be iterated over once.

    ``problem`` says afterwards, in a sentence, why not all of the file could be used (None: it could).
    A last sample is given only if it is whole: if it has what the one before it has.

    Raises:
        InputError: the file is missing, cannot be read, or is no uncompressed tar.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self._end = 0

    def __iter__(self) -> Iterator[Sample]:
        before: Sample | None = None
        current: Sample | None = None
        for key, extension, member in self._members():
            if current is None or current.key != key:
                if current is not None:
                    yield current
                before, current = current, Sample(key)
            if extension in current.members:
                current.repeated = True
            else:
                current.members[extension] = member
        if current is None:
            return
        whole = before is None or current.members.keys() >= before.members.keys()
        if self.problem is None or whole:
            yield current

    def _members(self) -> Iterator[tuple[str, str, Member]]:
        """(key, extension, place) of every plain file whose bytes are all there."""
        with _open(self.path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            tar = _read_beginning(self.path, file)
            last = -1
            while True:
                try:
                    member = tar.next()
                except _BAD_HEADER:
                    self.problem = _cut(self.path, tar.offset, size)
                    return
                if member is None:
                    break
                # All of them are kept otherwise: hundreds of bytes a file of the tar.
                cast(Any, tar).members.clear()
                end = member.offset_data + member.size
                if member.offset <= last or member.size < 0 or end > size:
                    self.problem = _cut(self.path, member.offset, size)
                    return
                last = member.offset
                parts = _split_name(member.name)
                if parts and member.isreg() and not member.issparse():
                    yield *parts, Member(member.offset_data, member.size)
            if not _ends_properly(file, tar.offset):
                self.problem = _cut(self.path, tar.offset, size)


class _Headers(io.BufferedReader):
    """Refuses reads that no header needs: a name of gigabytes would be read into memory otherwise."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too large")
        return super().read(size)


def _open(path: Path) -> _Headers:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a shard (.tar).")
        return _Headers(io.FileIO(path), buffer_size=8 * BLOCK)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check its name.") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); check its name and permissions."
        ) from error


def _read_beginning(path: Path, file: _Headers) -> tarfile.TarFile:
    beginning = file.read(BLOCK)
    for magic, program in _COMPRESSED.items():
        if beginning.startswith(magic):
            raise InputError(
                f"{path} is compressed, so no line can be read by itself; unpack it with {program}."
            )
    file.seek(0)
    try:
        return tarfile.TarFile(fileobj=file, mode="r")
    except _BAD_HEADER as error:
        raise InputError(
            f"{path} is no tar, or its beginning is damaged; copy or compile it again."
        ) from error


def _ends_properly(file: _Headers, offset: int) -> bool:
    """Whether the block after the last member is the end marker; an invalid header ends reading too."""
    file.seek(offset)
    return file.read(BLOCK) == bytes(BLOCK)


def _cut(path: Path, offset: int, size: int) -> str:
    return (
        f"{path} is cut short or damaged at byte {min(offset, size)} of {size}; only the lines before that "
        "are used; copy or compile it again."
    )


def _split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member as WebDataset cuts them; None for hidden files and its own notes."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or _NOTES.match(name):
        return None
    return f"{folder}{slash}{stem}", extension.lower()
