"""Forking a process whose libraries have threads of their own."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_LOOKS: Final = 2
_PAUSE: Final = 0.001
_RUNNING: Final = "R"


def wait_for_threads(limit: float = 0.5) -> bool:
    """Wait until all other threads of this process sleep; False where that takes over ``limit`` seconds.

    To be called right before a fork. A thread of a library that is about to call Python adds itself to the
    interpreter's list of threads, and need not hold the GIL for it: forked in that very moment, a child finds
    the list locked by nobody who is there, and waits for ever before its first instruction. Threads of gloo
    do so when they give back the tensors of a collective that has just ended. Without Linux nothing is waited
    for.
    """
    if sys.platform != "linux":
        return True
    until = time.monotonic() + limit
    quiet = 0
    while quiet < _LOOKS:
        quiet = 0 if _others_run() else quiet + 1
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE)
    return True


def _others_run() -> bool:
    own = str(threading.get_native_id())
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            # The name before the state may hold blanks and brackets.
            state = (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if state == _RUNNING and task.name != own:
                return True
    return False
