"""The folder of a data set: replaced as a whole by renaming, and never anything else than a data set of ours.

Beside ``DIR`` there may be ``.DIR.compiling``, where a new data set is made, and for a moment
``.DIR.replaced``, the one before. A crash at any instant leaves a state that ``repair`` puts right.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from distrib.errors import InputError
from distrib.files import write_error
from distrib.shards.manifest import MANIFEST_NAME, read_manifest

SOURCES: Final = "sources.jsonl"
INDEX: Final = "index.arrow"
_FILE_SUFFIXES: Final = (".arrow", ".tar")


class OutputFolder:
    """The folder that a data set of shards is to become.

    ``work`` is for everything that is not finished, ``dataset`` in it for the new data set, which is whole
    once its manifest is there.
    """

    def __init__(self, path: Path) -> None:
        self.given = path
        # A link stays one: what it points to is replaced.
        self.path = path.resolve()
        self.work = self.path.with_name(f".{self.path.name}.compiling")
        self.dataset = self.work / "dataset"
        self._replaced = self.path.with_name(f".{self.path.name}.replaced")

    @property
    def exists(self) -> bool:
        """Whether a data set is there already."""
        return (self.path / MANIFEST_NAME).is_file()

    def check(self) -> None:
        """Refuse a folder that cannot be made, or that holds something else than a data set of ours.

        Raises:
            InputError: and nothing has been changed.
        """
        try:
            self._check_place()
            if self.path.is_dir():
                self._check_content()
        except OSError as error:
            raise write_error(self.given, error) from error

    def repair(self) -> None:
        """Finish the replacement that a killed process began, or take it back. Raises OSError."""
        for gone in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.gone"):
            shutil.rmtree(gone, ignore_errors=True)
        if (self.dataset / MANIFEST_NAME).is_file():
            self.publish()
        elif self._replaced.is_dir():
            if self.path.exists():
                self._remove(self._replaced)
            else:
                self._replaced.rename(self.path)

    def publish(self) -> None:
        """Put the whole data set from the work folder in its place. Raises OSError."""
        if self.path.is_dir():
            self._remove(self._replaced)
            self.path.rename(self._replaced)
        self.dataset.rename(self.path)
        self._remove(self._replaced)

    def discard_work(self) -> None:
        """Remove the work folder."""
        self._remove(self.work)

    def _remove(self, folder: Path) -> None:
        """Remove a folder, if it is there, at once under its name and then its content."""
        # The name is free for the next process at any moment, and on network file systems a file that
        # somebody still reads keeps its folder from being removed.
        gone = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.gone")
        try:
            folder.rename(gone)
        except OSError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def _check_place(self) -> None:
        if self.path.suffix in _FILE_SUFFIXES and not self.path.is_dir():
            raise InputError(
                f"-o {self.given} is the name of a file; with --shard-format give the name of a folder."
            )
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"-o {self.given} is a file; with --shard-format give the name of a folder.")
        parent = self.path.parent
        if not parent.is_dir():
            what = "is a file, no folder" if parent.exists() else "does not exist; create it first"
            raise InputError(f"-o {self.given}: the folder {parent} {what}.")
        if self.path == parent:
            raise InputError(f"-o {self.given} is the root of the file system; choose another folder.")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"You may not write into {parent}; choose a folder elsewhere with -o.")

    def _check_content(self) -> None:
        """What is in the folder is removed when the new data set takes its place."""
        entries = sorted(entry.name for entry in self.path.iterdir())
        if not entries:
            return
        if MANIFEST_NAME not in entries:
            raise InputError(
                f"-o {self.given} is a folder without a data set, with {_shortened(entries)} in it; choose "
                "another."
            )
        manifest = read_manifest(self.path / MANIFEST_NAME)
        named = {MANIFEST_NAME, SOURCES, manifest.index.name, *(shard.name for shard in manifest.shards)}
        foreign = [name for name in entries if name not in named and not _is_sidecar(name)]
        if foreign:
            raise InputError(
                f"-o {self.given} holds {_shortened(foreign)} beside its data set, which would be lost; move "
                "that away or choose another folder."
            )


def _is_sidecar(name: str) -> bool:
    """Whether a file is an index or an unfinished one, which a reader of the shards or NFS may have made."""
    return name.startswith(".nfs") or (name.startswith(".") and name.endswith((".index", ".part")))


def _shortened(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first
