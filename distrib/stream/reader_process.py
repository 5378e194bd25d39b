"""A process that reads data for a training process ends with it."""

from __future__ import annotations

import ctypes
import signal
import sys
from contextlib import suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Called by a reader: let the system kill it when its parent, or the thread that started it, ends.

    A process that was killed is not known to be gone as long as its readers are there: they hold its
    connections to the other processes of the job as well. Without Linux nothing is done: torch's readers
    look every five seconds whether their parent is there.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
