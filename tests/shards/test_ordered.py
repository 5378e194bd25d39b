"""Spreading work over processes changes neither its order nor its memory, and ends well or with a reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distrib.shards.compiling.ordered import TASKS_AHEAD, WorkerDied, map_ordered

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    assert list(map_ordered(abs, range(-20, 0), workers=workers)) == list(range(20, 0, -1))


def test_tasks_are_taken_only_as_results_are_consumed() -> None:
    """Otherwise a slow disk would let finished pages pile up in memory."""
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = map_ordered(abs, tasks(), workers=2)
    next(results)
    assert taken <= TASKS_AHEAD * 2 + 1
    results.close()


def test_an_error_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(map_ordered(int, ["1", "x", "2"], workers=2))


def test_a_killed_worker_names_what_it_was_doing() -> None:
    """The out-of-memory killer says nothing; the page that was too large has to be named by us."""
    with pytest.raises(WorkerDied) as caught:
        list(map_ordered(os._exit, [9, 9, 9, 9, 9, 9], workers=2))
    assert caught.value.suspects == [9, 9]


def script(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(body), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


WAITING = """
    import sys, time
    from distrib.shards.compiling.ordered import map_ordered

    def work(seconds):
        import os
        time.sleep(seconds)
        return os.getpid()

    if __name__ == "__main__":
        try:
            for pid in map_ordered(work, [0.0, 0.0, 0.2] * 1000, workers=2):
                print(pid, flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.exit(130)
"""


def test_ctrl_c_reaches_this_process_alone(tmp_path: Path) -> None:
    """The terminal sends it to every process; the workers' tracebacks would bury the message."""
    process = script(tmp_path, WAITING)
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.endswith("interrupted\n")
    assert err == ""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """They would otherwise hold a node's memory for ever after a job was killed."""
    process = script(tmp_path, WAITING)
    assert process.stdout is not None
    workers = {int(process.stdout.readline()) for _ in range(6)}
    process.kill()
    process.communicate(timeout=20)  # returns once no worker holds the pipe's other end
    deadline = time.monotonic() + 10
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        os.sched_yield()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
