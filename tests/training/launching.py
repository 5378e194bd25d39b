"""Runs of several real processes, killed without warning."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distrib.runtime.checkpoints.difference import differences
from distrib.runtime.checkpoints.reader import open_checkpoint

WAIT_SECONDS = 240.0


def command(world_size: int, *arguments: object) -> list[str]:
    """The command line of ``ketos`` as one process, or as several under torchrun."""
    words = [str(argument) for argument in arguments]
    if world_size == 1:
        return [sys.executable, "-m", "distrib", *words]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    return [sys.executable, *torchrun, "-m", "distrib", *words]


def environment() -> dict[str, str]:
    """One thread a process, as torchrun would have it."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(world_size: int, *arguments: object, expect: int = 0, cwd: Path | None = None) -> str:
    """Run to the end and check the exit code; what was printed on both streams."""
    done = subprocess.run(
        command(world_size, *arguments),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(),
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_until(world_size: int, reached: Callable[[], bool], *arguments: object) -> bool:
    """Run, and kill every process with SIGKILL once ``reached``; False where the run ended before."""
    process = subprocess.Popen(
        command(world_size, *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment(),
    )
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        while not reached():
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "the run neither came that far nor ended"
            time.sleep(0.002)
        return process.poll() is None
    finally:
        kill_tree(process.pid)
        process.wait()


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
