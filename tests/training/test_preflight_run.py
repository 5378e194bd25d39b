"""`ketos train` and what its preflight says, as a user of several nodes or of a small container sees it."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import TINY_SPEC
from .forked import Server
from .jobs import on_two_nodes
from .launching import environment, rows, run

FEW = ["-f", "binary", "-B", 4, "-q", "fixed", "-N", 1, "-s", TINY_SPEC]
CPU = ["-d", "cpu", "--workers", 0]


@pytest.mark.slow
def test_a_node_with_another_run_directory_is_named_before_any_work(
    lines_arrow: Path, tmp_path: Path
) -> None:
    """A relative path leads to a folder of each node's own: the run would end at its first checkpoint."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    first, second = on_two_nodes(folders, *CPU, "train", "-o", "run", *FEW, lines_arrow)
    assert first.returncode == second.returncode == 2, first.stderr + second.stderr
    (sentence,) = [line for line in first.stderr.splitlines() if line.startswith("Error: ")]
    assert "run: process 1 on " in sentence
    assert "does not find what process 0 on" in sentence
    assert "give with -o a folder on a disk that all nodes share" in sentence
    assert second.stdout + second.stderr == ""
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


@pytest.fixture
def few_open_files(server: Server) -> Iterator[None]:
    """What is started has the limit of a careless site."""
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (512, limits[1]))
    yield
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)


@pytest.mark.slow
@pytest.mark.usefixtures("few_open_files")
def test_two_processes_say_what_they_found_before_the_first_step(lines_arrow: Path, tmp_path: Path) -> None:
    """And raise the limit of open files, which is too low here."""
    printed = run(2, *CPU, "train", "-o", tmp_path / "run", *FEW, lines_arrow)
    (line,) = [line for line in printed.splitlines() if " answered in " in line]
    assert line.startswith("2 processes on 1 node answered in ")
    assert "; all-reduce " in line
    assert " a step exchanges " in line
    events = rows(tmp_path / "run" / "events.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds.count("preflight") == 1
    (facts,) = [event for event in events if event["event"] == "preflight"]
    assert facts["processes"] == 2
    assert facts["all_reduce"]["bytes_per_step"] > 0
    assert facts["open_files"] == 1024
    assert facts["warnings"] == []
    assert facts["seconds"] < 3
    assert not list((tmp_path / "run").glob(".preflight*"))


def test_a_container_with_little_shared_memory_is_told_how_to_get_more(
    lines_arrow: Path, tmp_path: Path
) -> None:
    """Without this the first batches end the run with "no space left on device", or a reader is killed."""
    small = "mount -t tmpfs -o size=16k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small /dev/shm")
    words = ["-d", "cpu", "--workers", 2, "train", "-o", tmp_path / "run", *FEW, lines_arrow]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{small} && exec "$0" "$@"', sys.executable, "-m", "distrib"]
        + [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "16.4 KB of shared memory free (/dev/shm), and 2 reader processes hand over" in done.stderr
    assert "--shm-size" in done.stderr
    assert not (tmp_path / "run").exists()
