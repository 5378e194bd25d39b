"""What the processes of a run print, shown while they run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from launchers.history import read_history
from launchers.places import attempt_folder, rank_log
from launchers.plan import LaunchPlan
from launchers.status import log_files

_LOOK = 0.2


class _Follower:
    """Shows a rank's log of each attempt from where it was last looked at; attempts after ``since`` only."""

    def __init__(self, plan: LaunchPlan, rank: int, since: int, out: BinaryIO) -> None:
        self._plan, self._rank, self._out = plan, rank, out
        self._number, self._shown = since, 0

    def show(self) -> None:
        """Show what has come since the last look."""
        following = rank_log(attempt_folder(self._plan.run_dir, self._number + 1), self._rank)
        self._show(rank_log(attempt_folder(self._plan.run_dir, self._number), self._rank))
        while following.exists():
            self._number, self._shown = self._number + 1, 0
            self._show(following)
            following = rank_log(attempt_folder(self._plan.run_dir, self._number + 1), self._rank)

    def _show(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                file.seek(self._shown)
                data = file.read()
        except OSError:
            return
        self._shown += len(data)
        self._out.write(data)
        self._out.flush()


@contextmanager
def following(plan: LaunchPlan, *, rank: int = 0) -> Iterator[None]:
    """Show during the block what a rank prints in new attempts."""
    follower = _Follower(plan, rank, read_history(plan.run_dir).numbered, sys.stdout.buffer)
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


def follow_logs(plan: LaunchPlan, *, rank: int, ended: Callable[[], bool]) -> None:
    """Show a rank's log of the newest attempt from its beginning, and of all that follow, until the end."""
    attempts = read_history(plan.run_dir).attempts
    follower = _Follower(plan, rank, attempts[-1].number if attempts else 0, sys.stdout.buffer)
    while not ended():
        follower.show()
        time.sleep(_LOOK * 5)
    follower.show()


def print_logs(plan: LaunchPlan, *, attempt: int | None, rank: int | None) -> None:
    """Print the logs of an attempt."""
    paths = [path for path in log_files(plan, attempt=attempt, rank=rank) if path.is_file()]
    for path in paths:
        if len(paths) > 1:
            print(f"== {path}", flush=True)
        sys.stdout.buffer.write(path.read_bytes())
        sys.stdout.buffer.flush()
    if not paths:
        print(f"no logs yet in {plan.run_dir}", file=sys.stderr)
