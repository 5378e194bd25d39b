"""What the benchmarks share: commands timed in turn, and data that are always at hand."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = (sys.executable, "-m", "distrib")


def parser(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument("--kraken", type=shlex.split, help="kraken's ketos command to compare with")
    result.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of real ground truth"
    )
    result.add_argument(
        "--repeat", type=int, default=3, help="runs of each command, of which the best counts"
    )
    return result


def use_one_thread(*, pin: bool) -> None:
    """Compute with one thread, as `ketos` does outside of torch; ``pin`` keeps this process on one core.

    Call it before numpy is imported. Processes started afterwards inherit it.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if pin:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def one_core() -> dict[str, str]:
    """The variables of a command that computes with one thread, ours from this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def best_seconds(commands: Mapping[str, Sequence[str]], *, repeat: int, threads: int = 1) -> dict[str, float]:
    """Wall-clock seconds of each command's best run, start-up included; the commands take turns.

    The best time is the one least disturbed by what else the machine does, and taking turns lets drift
    fall on all of them alike. Raises subprocess.CalledProcessError where a command fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    best: dict[str, float] = {}
    for _ in range(repeat):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(
                command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            best[name] = min(best.get(name, float("inf")), time.perf_counter() - started)
    return best


def print_table(title: str, rows: Mapping[str, float], *, lines: int, peer: str) -> None:
    """Seconds, lines/s and how many times faster than ``peer`` each command was."""
    print(f"\n{title}, {lines} lines\n{'command':28} {'seconds':>8} {'lines/s':>8} {'ratio':>6}")
    for name, seconds in rows.items():
        ratio = f"{rows[peer] / seconds:6.2f}" if peer in rows else ""
        print(f"{name:28} {seconds:8.1f} {lines / seconds:8.1f} {ratio}")
