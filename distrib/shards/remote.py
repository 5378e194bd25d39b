"""Shards that lie behind a network: fsspec addresses, retries, and one sentence for whatever goes wrong."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.registry import known_implementations

RETRY_DELAYS = (0.1, 0.4, 1.6)
"""Seconds to wait before each further attempt."""

_LOCAL_PROTOCOLS = ("file://", "local://")
_PERMANENT = (
    ImportError,
    ValueError,
    NotImplementedError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHOWN_DETAIL = 200

Result = TypeVar("Result")


class RemoteError(Exception):
    """An access that failed for good; ``str(error)`` is a sentence with the address and the remedy."""


class RemoteMissing(RemoteError):
    """There is nothing under the address."""


class RemoteDiskFull(RemoteError):
    """What was to be stored here did not fit on the disk."""


def is_remote(address: str) -> bool:
    """True for an fsspec address other than one of the local file system."""
    return "://" in address and not address.startswith(_LOCAL_PROTOCOLS)


def local_file(address: str) -> Path:
    """The path of an address that is not remote; ``file:///x`` is ``/x``."""
    for protocol in _LOCAL_PROTOCOLS:
        address = address.removeprefix(protocol)
    return Path(address)


def shown_address(address: str) -> str:
    """The address as messages and logs may show it: without user, password, query or signature."""
    return re.sub(r"://[^/@]*@", "://", address).partition("?")[0]


def remote_call(
    address: str, action: Callable[[Any, str], Result], *, delays: Sequence[float] = RETRY_DELAYS
) -> Result:
    """``action(filesystem, path)`` on the file system of ``address``, again after what may pass.

    Raises:
        RemoteMissing: nothing is there.
        RemoteError: anything else a transport library may come up with.
    """
    remaining = list(delays)
    while True:
        # The libraries behind fsspec raise errors of dozens of unrelated classes, so this is the border
        # where all of them become one of ours.
        try:
            filesystem, path = url_to_fs(address)
            return action(filesystem, path)
        except RemoteError:
            raise
        except Exception as error:
            if _is_permanent(error) or not remaining:
                raise _remote_error(address, error) from error
            time.sleep(remaining.pop(0))


def _is_permanent(error: Exception) -> bool:
    return isinstance(error, _PERMANENT) or _is_full(error)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def _remote_error(address: str, error: Exception) -> RemoteError:
    shown = shown_address(address)
    if isinstance(error, FileNotFoundError):
        return RemoteMissing(f"{shown} does not exist; check the address.")
    if _is_full(error):
        return RemoteDiskFull(f"{shown} does not fit on the disk; free some of it.")
    if isinstance(error, PermissionError):
        return RemoteError(f"{shown} may not be read with the credentials given; check them.")
    if isinstance(error, ImportError):
        package = _missing_package(address, error)
        return RemoteError(f"{shown} needs the package {package}: pip install {package}")
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return RemoteError(f"{shown}: there is no file system of that name; check what stands before '://'.")
    detail = " ".join(str(error).replace(address, shown).split())[:_SHOWN_DETAIL] or type(error).__name__
    return RemoteError(f"{shown} could not be read ({detail}); check the network and the address.")


def _missing_package(address: str, error: ImportError) -> str:
    cause = error.__cause__ or error.__context__ or error
    name = getattr(cause, "name", None)
    if not name:
        protocol = address.partition("://")[0].rpartition("::")[2]
        known = known_implementations.get(protocol, {}).get("class", "")
        name = known if known and not known.startswith("fsspec.") else f"fsspec[{protocol}]"
        return name.partition(".")[0]
    return str(name).partition(".")[0]
