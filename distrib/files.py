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

from distrib.errors import InputError, KetosError, RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_error(path: Path, error: OSError) -> KetosError:
    """The sentence for a file that cannot be written."""
    if error.errno in _FULL:
        return RunError(f"no space left to write {path}: free some or choose an output on another disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"may not write {path}: choose an output in a folder you can write to")
    return RunError(f"could not write {path}: {error.strerror or error}")


def check_output(path: Path) -> None:
    """Refuse an output path that cannot become a file.

    Raises:
        InputError: its folder does not exist or is none, or the path is a folder.
    """
    if path.is_dir():
        raise InputError(f"output {path} is a folder: give the name of a file in it")
    if not path.parent.exists():
        raise InputError(f"folder {path.parent} of output {path} does not exist: create it first")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} in output {path} is a file: choose another folder")


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
        _sync_folder(self.path.parent)

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


def _sync_folder(folder: Path) -> None:
    # Some network file systems cannot flush folders; the rename has happened all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
