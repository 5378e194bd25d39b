"""A run that hangs ends by itself, with a sentence, the stacks of its processes, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from distrib.runtime.directory.endings import read_endings

from .comparing import kinds, training
from .forked import Job, Server
from .jobs import children
from .launching import rows

LIMIT = 3

ENDS_WITHIN = 60.0


def begin(server: Server, lines_arrow: Path, run: Path, *, workers: int) -> tuple[Job, Path]:
    """A long run of two processes that has taken a few steps, and where its processes leave their endings."""
    attempt = run.parent / "attempt"
    attempt.mkdir()
    words = training(lines_arrow, run, processes=2, epochs=5000)
    words = ["--stall-timeout", LIMIT, "--workers", workers, *words[words.index("--seed") :]]
    job = server.start(*words, processes=2, variables={"KETOS_ATTEMPT": str(attempt)})
    job.wait_for(lambda: (run / "last.ckpt").exists())
    return job, attempt


def sentence_of(job: Job) -> str:
    """The only sentence that was printed."""
    assert len(job.errors) == 1, job.output
    return job.errors[0]


def stacks(run: Path) -> dict[str, str]:
    """The stacks that were left, by name of the file."""
    return {path.name: path.read_text() for path in (run / "stacks").rglob("*.txt")}


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_a_run_with_a_stopped_process_ends(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    job, attempt = begin(server, lines_arrow, tmp_path / "run", workers=0)
    os.kill(job.pids[1], signal.SIGSTOP)
    assert job.wait(ENDS_WITHIN) == [1, -signal.SIGKILL]
    sentence = sentence_of(job)
    assert f"Process 1 on {socket.gethostname()} is stopped" in sentence
    assert ", and process 0 has been " in sentence
    assert "; the stacks of process 0 are in " in sentence
    assert sentence.endswith(f"; go on with `ketos train --resume {tmp_path / 'run'}`.")
    assert list(stacks(tmp_path / "run")) == ["rank-0.txt"]
    assert {rank: end.cause for rank, end in read_endings(attempt).items()} == {0: "timeout"}


@pytest.mark.slow
def test_a_run_whose_reader_hangs_ends(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    """A file on a disk that does not answer: the reader neither ends nor fails."""
    run = tmp_path / "run"
    job, attempt = begin(server, lines_arrow, run, workers=1)
    readers = [child for pid in job.pids for child in children(pid)]
    for reader in children(job.pids[1]):
        os.kill(reader, signal.SIGSTOP)
    assert job.wait(ENDS_WITHIN) == [1, 1]
    sentence = sentence_of(job)
    assert f"Process 1 on {socket.gethostname()} has been reading the data of " in sentence
    assert "look at the disk that holds the data, and at its readers" in sentence
    assert "the stacks of all processes are in" in sentence
    found = stacks(run)
    assert sorted(found) == ["rank-0.txt", "rank-1.txt"]
    assert "child " in found["rank-1.txt"]
    assert "state T" in found["rank-1.txt"]
    assert "loader.py" in found["rank-1.txt"]
    assert {rank: end.cause for rank, end in read_endings(attempt).items()} == {0: "timeout", 1: "timeout"}
    assert kinds(run, "timeout") == ["timeout"]
    deadline = time.monotonic() + 10
    while not all(gone(reader) for reader in readers):
        assert time.monotonic() < deadline, "readers were left behind"
        time.sleep(0.05)


def test_a_run_that_goes_well_leaves_no_stacks(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    """Every phase of a run ends in time, and none of them is taken for a stall."""
    run = tmp_path / "run"
    words = training(lines_arrow, run, processes=2, epochs=1)
    server.run("--stall-timeout", 60, *words, processes=2)
    assert not (run / "stacks").exists()
    assert [row for row in rows(run / "events.jsonl") if row["event"] in ("stall", "timeout")] == []
