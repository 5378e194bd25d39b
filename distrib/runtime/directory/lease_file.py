"""The file that says which run has a directory, and the one step by which it comes to say another.

``lease.json`` holds a random token. Who takes a lease over does not touch it, but makes the file
``.lease.TOKEN.next`` with a lease of its own: making a file that must not be there yet is one step on the
server, and no token comes twice, so of all who try exactly one succeeds. The lease in force is at the end
of the chain from ``lease.json`` on; the new holder then gives its own that name, and the rest is swept up.
Wherever one of them is killed, the chain can be followed, and there is no moment without a lease in force.

Written for folders that several machines share: nothing relies on locks, on clocks that agree, or on a
change by one machine being visible in the open files of another (only in files opened anew). A holder
writes its beats into the file that it made, by descriptor, so that one that has lost its lease without
noticing cannot write into its successor's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from distrib.runtime.directory.machine import ProcessIdentity, this_process, user_name

LEASE: Final = "lease.json"
_PREFIX: Final = ".lease."
_NEXT: Final = ".next"
_ASIDE: Final = ".part"
_BYTES: Final = 2048
"""Size of a lease, filled up with blanks: beats of any number fit in place, within one page."""
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME: Final = 100
_LONGEST_CHAIN: Final = 100
_FORGOTTEN: Final = 3600.0
"""Seconds after which a file that somebody was writing aside is taken for left behind."""
_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL, errno.EXDEV)
_TRY_AGAIN: Final = (0.02, 0.1, 0.4)
"""Seconds between looks at what may be half a write, or a name that another machine is just moving."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease. ``started`` is its own time with zone, ``interval`` the seconds between beats."""

    token: str
    process: ProcessIdentity
    user: str
    job: str
    started: str
    interval: float

    @classmethod
    def here(cls, environ: Mapping[str, str], *, interval: float) -> Holder:
        """This process, with the job that the variables of its scheduler name."""
        return cls(
            token=secrets.token_hex(16),
            process=this_process(),
            user=user_name(),
            job=(environ.get("SLURM_JOB_ID") or environ.get("RAY_JOB_ID") or "")[:_LONGEST_NAME],
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            interval=interval,
        )

    def encoded(self, beat: int) -> bytes:
        """The file's content after ``beat`` beats."""
        process = vars(self.process)
        text = json.dumps({**vars(self), "process": process, "beat": beat}, ensure_ascii=True)
        return text.encode("ascii").ljust(_BYTES - 1) + b"\n"


@dataclass(frozen=True, kw_only=True)
class FoundLease:
    """A lease as it was read. ``holder`` is None where the file is damaged.

    ``key`` names it: the token, or what stands for one. ``sign`` changes with each beat. ``modified`` is
    in seconds by the clock of the file server.
    """

    holder: Holder | None
    key: str
    sign: tuple[bytes, int]
    modified: float
    inode: tuple[int, int]

    @property
    def successor(self) -> str:
        """The name of the file by which this lease is taken over."""
        return f"{_PREFIX}{self.key}{_NEXT}"


def lease_in_force(directory: Path) -> FoundLease | None:
    """The lease of ``directory``, asked anew of its file server; None without one. Raises OSError."""
    _ask_anew(directory)
    found = _read(directory / LEASE)
    for _ in range(_LONGEST_CHAIN):
        following = None if found is None else _read(directory / found.successor)
        if following is None:
            break
        found = following
    return found


class LeaseFile:
    """The lease of this process: written aside, put in force by ``claim``, beating until closed."""

    def __init__(self, directory: Path, holder: Holder) -> None:
        """Raises OSError where the directory cannot be written."""
        self.directory = directory
        self.holder = holder
        self._beat = 0
        self._aside = directory / f"{_PREFIX}{holder.token}{_ASIDE}"
        self._descriptor = os.open(self._aside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        try:
            self.write_beat()
        except OSError:
            self.close()
            raise

    def claim(self, found: FoundLease | None) -> bool:
        """Put this lease in force after ``found``, which was and has ended; False if that came too late.

        A process that is stopped between the two last steps here for so long that another takes the lease
        over meanwhile takes it back on waking: the other then finds so before its next write.
        """
        target = self.directory / (LEASE if found is None else found.successor)
        linked = _make_exclusively(self._aside, target)
        if linked is None and not self._is_ours(_read(target)):
            return False
        if not self.in_force():
            # Made after somebody had swept up the lease that it follows.
            self._remove(target)
            return False
        if found is not None or not linked:
            self._aside.replace(self.directory / LEASE)
        self._sweep()
        return True

    def in_force(self) -> bool:
        """Whether this lease is the one that counts, asked anew of the file server. Raises OSError."""
        return self._is_ours(lease_in_force(self.directory))

    def same_file(self, found: FoundLease) -> bool:
        """Whether ``found`` stands in the file that the beats go to, whatever is written there."""
        status = os.fstat(self._descriptor)
        return found.inode == (status.st_dev, status.st_ino)

    def modified(self) -> float:
        """When the last beat was written, by the clock of the file server, seconds."""
        return os.fstat(self._descriptor).st_mtime

    def write_beat(self) -> None:
        """Show that this process lives. Raises OSError."""
        self._beat += 1
        try:
            os.pwrite(self._descriptor, self.holder.encoded(self._beat), 0)
            os.fsync(self._descriptor)
        except OSError:
            # On a full disk the time of the file can still be set, which is a sign of life too.
            if self._beat == 1:
                raise
            os.utime(self._descriptor)

    def close(self) -> None:
        """Give the lease up if it is in force, and remove what was written aside."""
        try:
            with contextlib.suppress(OSError):
                if self.in_force():
                    self._remove(self.directory / LEASE)
            with contextlib.suppress(OSError):
                self._aside.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)

    def _is_ours(self, found: FoundLease | None) -> bool:
        return found is not None and found.key == self.holder.token

    def _remove(self, path: Path) -> None:
        if self._is_ours(_read(path)):
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what takeovers have left; only the file that would take this lease over is of use."""
        now = self.modified()
        for path in self.directory.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                forgotten = path.suffix == _ASIDE and now - path.stat().st_mtime > _FORGOTTEN
                done = path.suffix == _NEXT and self.holder.token not in path.name
                if forgotten or done or path == self._aside:
                    path.unlink(missing_ok=True)


def _make_exclusively(aside: Path, target: Path) -> bool | None:
    """Give ``aside`` a second name that must be new: True; a copy where there are no links: False.

    None where the name is there, be it by this very call whose answer was lost on the way.
    """
    try:
        os.link(aside, target)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    try:
        descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(aside.read_bytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        target.unlink(missing_ok=True)
        raise
    return False


def _ask_anew(directory: Path) -> None:
    """Opening a folder makes NFS ask for what is in it, instead of remembering for a minute."""
    os.close(os.open(directory, os.O_RDONLY))


def _read(path: Path) -> FoundLease | None:
    """The lease in a file; None where there is none. Raises OSError."""
    found = None
    for pause in (*_TRY_AGAIN, None):
        try:
            found = _read_once(path)
        except OSError as error:
            # A name moved by another machine can lead to a file that is gone, until asked again.
            if error.errno != errno.ESTALE or pause is None:
                raise
        else:
            if found is None or found.holder is not None or pause is None:
                break
        time.sleep(pause)
    return found


def _read_once(path: Path) -> FoundLease | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        data, status = os.read(descriptor, 2 * _BYTES), os.fstat(descriptor)
    finally:
        os.close(descriptor)
    holder = _decoded(data)
    return FoundLease(
        holder=holder,
        key=hashlib.blake2b(data, digest_size=8).hexdigest() if holder is None else holder.token,
        sign=(data, status.st_mtime_ns),
        modified=status.st_mtime,
        inode=(status.st_dev, status.st_ino),
    )


def _decoded(data: bytes) -> Holder | None:
    """The holder that a file names; None where it is damaged, or was never a lease."""
    try:
        row = json.loads(data)
        process = ProcessIdentity(
            host=_name(row["process"]["host"]),
            boot_id=_name(row["process"]["boot_id"]),
            pid_namespace=_name(row["process"]["pid_namespace"]),
            pid=int(row["process"]["pid"]),
            start=int(row["process"]["start"]),
        )
        holder = Holder(
            token=_name(row["token"]),
            process=process,
            user=_name(row["user"]),
            job=_name(row["job"]),
            started=_name(row["started"]),
            interval=min(max(float(row["interval"]), 0.0), 60.0),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return holder if _TOKEN.fullmatch(holder.token) else None


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise ValueError("no name")
    return value
