"""What the processes of a run print, shown while they run."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from launchers.history import read_history
from launchers.places import attempt_folder, last_attempt, rank_log
from launchers.plan import LaunchPlan

_LOOK = 0.2
_CHUNK = 1 << 20
_LAST_BYTES = 1 << 12


class _Follower:
    """Shows a rank's log from the attempt ``number`` on, of that one what comes after ``shown`` bytes."""

    def __init__(self, plan: LaunchPlan, rank: int, number: int, shown: int, out: BinaryIO) -> None:
        self._plan, self._rank, self._out = plan, rank, out
        self._number, self._shown = number, shown

    def show(self) -> None:
        """Show what has come since the last look."""
        self._show()
        while attempt_folder(self._plan.run_dir, self._number + 1).exists():
            self._number, self._shown = self._number + 1, 0
            self._show()

    def _show(self) -> None:
        with suppress(OSError):
            self._shown += show_file(self._log(), self._out, after=self._shown)

    def _log(self) -> Path:
        return rank_log(attempt_folder(self._plan.run_dir, self._number), self._rank)


def show_file(path: Path, out: BinaryIO, *, after: int = 0) -> int:
    """Write what a file has after so many bytes, which may be much; the bytes written. Raises OSError."""
    written = 0
    with path.open("rb") as file:
        file.seek(after)
        while chunk := file.read(_CHUNK):
            out.write(chunk)
            written += len(chunk)
    if written:
        out.flush()
    return written


@contextmanager
def following(plan: LaunchPlan, *, rank: int = 0) -> Iterator[None]:
    """Show during the block what a rank prints in new attempts."""
    number = last_attempt(plan.run_dir)
    before = rank_log(attempt_folder(plan.run_dir, number), rank)
    shown = before.stat().st_size if before.is_file() else 0
    follower = _Follower(plan, rank, number, shown, sys.stdout.buffer)
    ending = threading.Event()

    def watch() -> None:
        while not ending.wait(_LOOK):
            follower.show()

    thread = threading.Thread(target=watch, name="following", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        follower.show()


def last_line(path: Path, *, after: int = 0) -> str:
    """The last line that a file has after so many bytes; a word for it where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(after, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it says nothing"


def follow_logs(plan: LaunchPlan, *, rank: int, ended: Callable[[], bool]) -> None:
    """Show a rank's log of the newest attempt from its beginning, and of all that follow, until the end."""
    follower = _Follower(plan, rank, last_attempt(plan.run_dir), 0, sys.stdout.buffer)
    while not ended():
        follower.show()
        time.sleep(_LOOK * 5)
    follower.show()


def print_logs(plan: LaunchPlan, *, attempt: int | None, rank: int | None) -> None:
    """Print the logs of an attempt, of the last one without a number; of one rank, or of all."""
    attempts = read_history(plan.run_dir).attempts
    newest = attempts[-1].number if attempts else 0
    folder = attempt_folder(plan.run_dir, newest if attempt is None else attempt)
    found = [rank_log(folder, rank)] if rank is not None else folder.glob("rank-*.log")
    # By rank: longer names are those of higher numbers.
    paths = sorted(filter(Path.is_file, found), key=lambda path: (len(path.name), path.name))
    for path in paths:
        if len(paths) > 1:
            print(f"== {path}", flush=True)
        show_file(path, sys.stdout.buffer)
    if not paths:
        print(f"no logs yet in {plan.run_dir}", file=sys.stderr)
