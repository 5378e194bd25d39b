"""Folders of shards, local or remote: what is in them, and names of files in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from distrib.errors import InputError
from distrib.shards.remote import RemoteError, is_remote, local_file, remote_call


def is_folder(address: str) -> bool:
    """Whether there is a folder. Raises InputError where that cannot be found out."""
    if not is_remote(address):
        return local_file(address).is_dir()
    try:
        return bool(remote_call(address, lambda filesystem, path: filesystem.isdir(path)))
    except RemoteError as error:
        raise InputError(str(error)) from error


def file_sizes(folder: str) -> Mapping[str, int]:
    """Bytes of each file in a folder by its name, -1 where the file system does not tell.

    One request, however many files there are. Raises InputError where the folder cannot be listed.
    """
    if not is_remote(folder):
        try:
            with os.scandir(local_file(folder)) as entries:
                return {entry.name: size for entry in entries if (size := _size(entry)) is not None}
        except OSError as error:
            raise InputError(
                f"{folder} cannot be listed ({error.strerror or error}); check its name and permissions."
            ) from error
    try:
        entries_there: list[dict[str, Any]] = remote_call(
            folder, lambda filesystem, path: filesystem.ls(path, detail=True)
        )
    except RemoteError as error:
        raise InputError(str(error)) from error
    return {
        str(entry["name"]).rstrip("/").rpartition("/")[2]: -1 if entry.get("size") is None else entry["size"]
        for entry in entries_there
        if entry.get("type") != "directory"
    }


def join(folder: str, name: str) -> str:
    """The address of a file in a folder."""
    if is_remote(folder):
        return f"{folder.rstrip('/')}/{name}"
    return str(local_file(folder) / name)


def parent(address: str) -> str:
    """The address of the folder a file lies in."""
    if is_remote(address):
        return address.rpartition("/")[0]
    return str(local_file(address).parent)


def _size(entry: os.DirEntry[str]) -> int | None:
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:  # a link to nowhere, or gone since it was listed
        return None
