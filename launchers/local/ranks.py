"""Which processes of an attempt are still there, whatever has become of those that started them.

Each leaves ``rank-<r>.pid`` in the attempt's folder before it becomes the program that it is to run.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from distrib.files import written_whole
from distrib.runtime.directory.machine import ProcessIdentity, this_process

_LOOK: Final = 0.1
_AFTER_KILL: Final = 60.0
"""Seconds for a process that was killed to be gone: one that waits for a device may take long."""


def register(folder: Path, rank: int) -> None:
    """Put the calling process on record as ``rank`` of the attempt in ``folder``. Raises OSError."""
    with written_whole(folder / f"rank-{rank}.pid") as file:
        file.write(json.dumps(vars(this_process())).encode())


def living(folder: Path) -> list[int]:
    """The process ids of the ranks in ``folder`` that run on this machine."""
    here, found = this_process(), []
    for path in folder.glob("rank-*.pid"):
        with suppress(OSError, ValueError, TypeError):
            process = ProcessIdentity(**json.loads(path.read_bytes()))
            if process.known_here(here) and not process.has_ended(here):
                found.append(process.pid)
    return found


def end_left(folder: Path, grace: float) -> None:
    """Return when no rank is left of those that were asked to end; kill them after ``grace`` seconds."""
    deadline = time.monotonic() + grace
    while (left := living(folder)) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    send(left, signal.SIGKILL)
    deadline = time.monotonic() + _AFTER_KILL
    while living(folder) and time.monotonic() < deadline:
        time.sleep(_LOOK)


def send(processes: list[int], number: int) -> None:
    """Signal processes, which may be gone."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
