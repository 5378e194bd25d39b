"""Why a process of an attempt ends, left for the launcher that has started it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from distrib.errors import (
    DirectoryInUse,
    InputError,
    KetosError,
    OutOfMemory,
    PeerError,
    PeerLost,
    Preempted,
    TimeoutReached,
    Unexpected,
)
from distrib.runtime.directory.endings import ATTEMPT_VARIABLE, Ending, EndingCause, write_ending
from distrib.runtime.topology import topology_of

_NAMED_BADLY: Final = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
)
"""What a system call fails with where its user has named the wrong thing, or one that is not theirs."""
_USED_UP: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)
"""What it fails with for want of what the machine will not have the next time either."""

_SIGNALLED: Final = 128


def leave_ending(error: BaseException, said: BaseException, environ: Mapping[str, str]) -> None:
    """Leave ``rank-<r>.json`` where ``environ`` names the folder of an attempt and the process has failed.

    ``error`` is what ended it, and ``said`` what was made of it for the user. Never raises.
    """
    folder, code = environ.get(ATTEMPT_VARIABLE), exit_code(said)
    if not folder or not code:
        return
    sentence = said.format_message() if isinstance(said, click.ClickException) else str(error)
    ending = Ending(
        rank=_rank(environ),
        host=socket.gethostname(),
        pid=os.getpid(),
        exit_code=code,
        cause=cause_of(error),
        sentence=sentence,
    )
    write_ending(Path(folder), ending)


def exit_code(error: BaseException) -> int:
    """The exit code that an error gives a process."""
    if isinstance(error, SystemExit):
        code = error.code
        return code if isinstance(code, int) else int(code is not None)
    return int(getattr(error, "exit_code", 1))


def cause_of(error: BaseException) -> EndingCause:
    """What kind of end an error is."""
    if isinstance(error, KetosError):
        return _cause_of_ours(error)
    if isinstance(error, click.ClickException):
        return "input"
    if isinstance(error, KeyboardInterrupt):
        return "preempted"
    if isinstance(error, SystemExit | click.exceptions.Exit | click.Abort):
        return "preempted" if exit_code(error) > _SIGNALLED else "run"
    if memory_exhausted(error):
        return "memory"
    return system_cause(error) if isinstance(error, OSError) else "unexpected"


def system_cause(error: OSError) -> EndingCause:
    """What kind of end an error of the system is.

    Whatever is neither the user's to mend nor sure to come again may have passed by the next attempt: a file
    server that did not answer, a connection that broke, a disk that failed to read.
    """
    if error.errno == errno.ENOMEM:
        return "memory"
    if isinstance(error, BrokenPipeError) or error.errno in _USED_UP:
        return "run"
    # Libraries raise these two by their name alone.
    named = isinstance(error, FileNotFoundError | PermissionError)
    return "input" if named or error.errno in _NAMED_BADLY else "unexpected"


def memory_exhausted(error: BaseException) -> bool:
    """Whether memory has run out, of the machine or of a device."""
    # Of torch's error the name is enough: to import torch may take longer than what has ended.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _cause_of_ours(error: KetosError) -> EndingCause:
    if isinstance(error, Preempted):
        return "preempted"
    if isinstance(error, PeerError):
        return "preempted" if error.exit_code > _SIGNALLED else "peer"
    if isinstance(error, PeerLost):
        return "peer"
    if isinstance(error, TimeoutReached):
        return "timeout"
    if isinstance(error, OutOfMemory):
        return "memory"
    if isinstance(error, Unexpected):
        return "unexpected"
    if isinstance(error, DirectoryInUse):
        return "busy"
    return "input" if isinstance(error, InputError) else "run"


def _rank(environ: Mapping[str, str]) -> int:
    try:
        return topology_of(environ).rank
    except InputError:
        # The launcher's variables may be what is wrong; where the rank is not, it is good enough.
        found = environ.get("RANK", environ.get("SLURM_PROCID", ""))
        return int(found) if found.isdecimal() else 0
