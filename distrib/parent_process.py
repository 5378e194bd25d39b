"""A process that ends with the one that started it."""

from __future__ import annotations

import ctypes
import signal
import sys
from contextlib import suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the system send this process the signal ``number`` when its parent, or the thread of it that
    started this process, ends; programs that it is replaced by have it so, too.

    A process that was killed is not known to be gone as long as its readers are there: they hold its
    connections to the other processes of the job as well. Without Linux nothing is done.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
