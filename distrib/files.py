"""Writing a file aside: under its final name there is the whole file or nothing new."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from distrib.errors import InputError, KetosError, RunError, Unexpected

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BAD_NAME = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def write_error(path: Path, error: OSError) -> KetosError:
    """The sentence for a file that cannot be written."""
    if error.errno in _FULL:
        return RunError(f"{path}: no space left to write it; free some or choose an output on another disk.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"You may not write {path}; choose an output in a folder you can write to.")
    if error.errno in _BAD_NAME:
        return InputError(f"{path}: no file can be written there ({error.strerror}); choose another name.")
    return Unexpected(f"{path}: could not be written ({error.strerror or error}); try again or elsewhere.")


def check_output(path: Path, *, option: str = "-o", replaces: bytes | None = None) -> None:
    """Refuse an output path that cannot become a file, or where another kind of file would be lost.

    ``option`` names the path in messages. A file that is already there may be replaced only if it is
    empty or begins with ``replaces`` (None: any).

    Raises:
        InputError: its folder does not exist or is none, the path is a folder, or another kind of file.
    """
    try:
        if path.is_dir():
            raise InputError(f"{option} {path} is a folder; give the name of a file in it.")
        if path.exists() and not path.is_file():
            # A file takes its name by being renamed to it: a superuser's would take the place of /dev/null.
            raise InputError(f"{option} {path} is a device or pipe; give the name of a file.")
        if not path.parent.exists():
            raise InputError(f"{option} {path}: the folder {path.parent} does not exist; create it first.")
        if not path.parent.is_dir():
            raise InputError(f"{option} {path}: {path.parent} is a file, no folder; choose another.")
        if replaces is not None and path.is_file() and not _may_replace(path, replaces):
            raise InputError(
                f"{option} {path} is a file of another kind, which would be lost; choose another name."
            )
    except OSError as error:
        raise write_error(path, error) from error


def _may_replace(path: Path, beginning: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(beginning)) in (b"", beginning)


def scratch_file(directory: Path) -> BinaryIO:
    """A file in ``directory`` without a name, gone when closed or when the process is killed."""
    path, file = _create(directory / "scratch")
    path.unlink()
    return file


class AsideFile:
    """A binary file that takes its name when it is whole.

    ``file`` is open for writing beside the final path until ``commit`` flushes it to the disk and
    renames it. Leaving the ``with`` block without ``commit`` removes it.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError where the folder cannot be written to."""
        self.path = path
        self._aside, self.file = _create(path)

    def commit(self) -> None:
        """Give the file its name; it and its name are on the disk afterwards. Raises OSError."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._aside.replace(self.path)
        sync_folder(self.path.parent)

    def __enter__(self) -> AsideFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A full disk fails again when the buffered rest is written on closing; the first error tells all.
        with contextlib.suppress(OSError):
            self.file.close()
        self._aside.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends well, else leaves no trace.

    Raises OSError where it cannot be written.
    """
    with AsideFile(path) as aside:
        yield aside.file
        aside.commit()


def _create(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``path`` that no other process uses, with the permissions of any new file."""
    aside = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    return aside, aside.open("x+b", buffering=1 << 20)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    # Some network file systems cannot flush folders; the rename has happened all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
