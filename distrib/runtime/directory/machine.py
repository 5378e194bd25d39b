"""What Linux says of this machine and its processes, as far as one process may know another by it."""

from __future__ import annotations

import os
import platform
import pwd
import time
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_STATE, _START = 0, 19  # of /proc/PID/stat, counted after the name of the program
_ENDED = ("Z", "X", "x")


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process that can be told from all others: where it runs, its id there, and since when.

    A name of a host is not enough, as containers share theirs, and ids are given again: ``boot_id`` is new
    with each start of a machine, ``pid_namespace`` differs between containers, and ``start`` (clock ticks
    since that start) between processes of one id. Unknown ones are empty, or 0.
    """

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start: int

    def known_here(self, here: ProcessIdentity) -> bool:
        """Whether a process that is ``here`` can say if this one still runs."""
        same = (self.host, self.boot_id, self.pid_namespace) == (here.host, here.boot_id, here.pid_namespace)
        return same and bool(self.boot_id and self.pid_namespace) and self.start > 0

    def has_ended(self, here: ProcessIdentity) -> bool:
        """True only where it is certain that the process runs no longer."""
        if not self.known_here(here) or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # another user's, whose entry in /proc may be hidden
        found = _stat(self.pid)
        return found is not None and (found[_STATE] in _ENDED or int(found[_START]) != self.start)


def this_process() -> ProcessIdentity:
    """The calling process."""
    found = _stat(os.getpid())
    return ProcessIdentity(
        host=platform.node() or "localhost",
        boot_id=_text(_PROC / "sys/kernel/random/boot_id"),
        pid_namespace=_link(_PROC / "self/ns/pid"),
        pid=os.getpid(),
        start=0 if found is None else int(found[_START]),
    )


def process_age() -> float:
    """Seconds since this process was started, its imports included; 0 where the system does not say."""
    found = _stat(os.getpid())
    if found is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0.0, since_boot - int(found[_START]) / os.sysconf("SC_CLK_TCK"))


def user_name() -> str:
    """The user that this process runs as; the number where it has no name, as in many containers."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; the name before it may hold blanks and brackets."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > _START and fields[_START].isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
