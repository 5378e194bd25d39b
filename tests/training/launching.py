"""Runs of several real processes, killed without warning."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distrib.runtime.checkpoints.difference import differences
from distrib.runtime.checkpoints.reader import open_checkpoint

from .forked import WAIT_SECONDS, shared


def command(world_size: int, *arguments: object) -> list[str]:
    """The command line of ``ketos`` as one process, or as several under torchrun, that import all anew."""
    words = [str(argument) for argument in arguments]
    if world_size == 1:
        return [sys.executable, "-m", "distrib", *words]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    return [sys.executable, *torchrun, "-m", "distrib", *words]


def environment() -> dict[str, str]:
    """One thread a process, as torchrun would have it."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(world_size: int, *arguments: object, expect: int = 0, cwd: Path | None = None) -> str:
    """Run ``ketos`` to the end and check each exit code; what was printed on both streams."""
    return shared().run(*arguments, processes=world_size, expect=expect, cwd=cwd)


def run_until(world_size: int, reached: Callable[[], bool], *arguments: object) -> bool:
    """Run, and kill every process with SIGKILL once ``reached``; False where the run ended before."""
    job = shared().start(*arguments, processes=world_size)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached():
            if None not in job.codes():
                return False
            assert time.monotonic() < deadline, "the run neither came that far nor ended"
            time.sleep(0.002)
        return None in job.codes()
    finally:
        job.kill()


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that descend from it, which torchrun gives sessions of their own."""
    tree = [pid]
    for parent in tree:
        tree += [child for child, of in _parents().items() if of == parent]
    for each in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def _parents() -> dict[int, int]:
    """The parent of every process of this machine."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    return found


def rows(path: Path) -> list[dict[str, float]]:
    """The objects of a JSON lines file; a torn last one is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def unlike(one: Path, other: Path) -> list[str]:
    """What differs between two checkpoints, to the bit; where each run wrote to does not count."""
    found = differences(open_checkpoint(one), open_checkpoint(other))
    return [place for place in found if place != "common/ketos/experiment"]
