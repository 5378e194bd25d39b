"""The wish that a run should end: a signal to its agent, or a file left in its directory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distrib.runtime.directory.lease import Lease
from launchers.places import cancel_file

CANCELLED = "cancelled"
TAKEN_OVER = "taken over"
_LOOK_EVERY = 0.5


class StopRequest:
    """Whether and why the attempt under way is to end; ``reason`` is asked at least once a second.

    Files are looked for twice a second at most, so that asking is cheap on a shared file system.
    """

    def __init__(self, run_dir: Path) -> None:
        self._file = cancel_file(run_dir)
        self.lease: Lease | None = None
        """The lease of the agent: another agent may have taken over from one that was silent for long."""
        self._signal: int | None = None
        self._cancelled = False
        self._next_look = 0.0

    @property
    def reason(self) -> str | None:
        """``cancelled``, ``taken over``, the name of a signal, or None."""
        if self.lease is not None and self.lease.lost:
            return TAKEN_OVER
        if self.cancelled:
            return CANCELLED
        return None if self._signal is None else signal.Signals(self._signal).name

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked for the end of the run itself, not just of this job."""
        now = time.monotonic()
        if not self._cancelled and now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            self._cancelled = self._file.exists()
        return self._cancelled

    @property
    def signal(self) -> int | None:
        """The signal that the agent has got."""
        return self._signal

    def note(self, number: int) -> None:
        """Take note of a signal; the first one counts."""
        if self._signal is None and number == signal.SIGINT:
            os.write(2, b"Ending: the processes save first.\n")
        self._signal = self._signal or number


@contextmanager
def heeding_signals(stop: StopRequest, *signals: int) -> Iterator[None]:
    """Let ``stop`` take note of these signals during the block, instead of what they do otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _: Any) -> None:
        stop.note(number)

    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
