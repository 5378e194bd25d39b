"""Checkpoints taking their names, and going; killed at any instant, a whole one remains under its name."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from distrib.files import sync_folder
from distrib.runtime.checkpoints.names import LAST

_ASIDE = re.compile(r"\..+\.ckpt\.[0-9a-f]+\.part")
_REPLACED = ".replaced.ckpt"
_NO_LINKS = (
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
    errno.EINVAL,
    errno.EACCES,
)


def aside_path(path: Path, token: str | None = None) -> Path:
    """Where what will be ``path`` is written; nobody takes it for a checkpoint. ``token`` is hexadecimal."""
    return path.with_name(f".{path.name}.{token or secrets.token_hex(4)}.part")


def publish(aside: Path, path: Path) -> None:
    """Give a whole file or folder its name, in place of what has it; on the disk on return.

    Raises OSError.
    """
    if _is_folder(path) or (_is_folder(aside) and _there(path)):
        # A folder cannot be replaced in one step. Until the new one has the name, the old one is a
        # checkpoint under another.
        replaced = path.with_name(f"{path.stem}.{secrets.token_hex(4)}{_REPLACED}")
        path.rename(replaced)
        aside.rename(path)
        sync_folder(path.parent)
        remove(replaced)
    else:
        aside.replace(path)
        sync_folder(path.parent)


def point_last(path: Path) -> None:
    """Make ``last.ckpt`` beside ``path`` stand for it: a link, or a copy where there are none.

    Raises OSError.
    """
    last = path.with_name(LAST)
    aside = aside_path(last)
    try:
        try:
            if path.is_dir():
                aside.symlink_to(path.name)
            else:
                os.link(path, aside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _copy(path, aside)
        if _is_folder(last) or (_is_folder(aside) and _there(last)):
            remove(last)
        aside.replace(last)
        sync_folder(path.parent)
    finally:
        remove(aside)  # still there where both were links to one file already: then renaming does nothing


def last_name(directory: Path) -> str | None:
    """The name of the checkpoint that a linked ``last.ckpt`` of a folder stands for."""
    try:
        return (directory / LAST).readlink().name
    except OSError:
        return None


def remove(path: Path) -> None:
    """Remove a checkpoint, or what is left of one; a folder loses its name first. Raises OSError."""
    if _is_folder(path):
        if not _ASIDE.fullmatch(path.name):
            aside = aside_path(path)
            path.rename(aside)
            path = aside
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what runs that were killed left half written. Only where no other run can be at work."""
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        replaced = path.name.endswith(_REPLACED)
        if replaced and not _there(directory / f"{path.name[: -len(_REPLACED)].rpartition('.')[0]}.ckpt"):
            continue  # killed before the new one took the name: this one is all there is
        if replaced or _ASIDE.fullmatch(path.name):
            # What cannot be removed does no harm.
            with suppress(OSError):
                remove(path)


def _copy(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, target, copy_function=_copy_file)
    else:
        _copy_file(str(path), str(target))


def _copy_file(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _there(path: Path) -> bool:
    return os.path.lexists(path)
