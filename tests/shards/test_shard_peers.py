"""Processes that compile together find each other, and none waits for one that is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distrib.errors import InputError, RunError
from distrib.ground_truth.records import LineImage
from distrib.shards.compiling.compile import CompileJob
from distrib.shards.compiling.compile_shards import compile_shards
from distrib.shards.compiling.peers import Peers, PeerTimes, Progress
from distrib.shards.manifest import read_manifest

QUICK = PeerTimes(beat=0.05, silence=1.0, start=10.0, poll=0.05)


def read_one(source: Path, **_: object) -> Iterator[LineImage]:
    yield LineImage(source=source, line_id="l", text=source.name, image=Image.new("L", (30, 12)))


def job(tmp_path: Path, **changes: Any) -> CompileJob:
    sources = [tmp_path / f"{number}.xml" for number in range(6)]
    return CompileJob(
        **{"sources": sources, "output": tmp_path / "ds", "shard_format": "arrow", "workers": 0, **changes}
    )


def peers(tmp_path: Path, rank: int, size: int = 2, **changes: Any) -> Peers:
    options = {"task": "same", "times": QUICK, **changes}
    return Peers(tmp_path / "work" / "peers", rank=rank, world_size=size, **options)


def run(*actions: Callable[[], Any]) -> list[Future[Any]]:
    with ThreadPoolExecutor(len(actions)) as threads:
        return [threads.submit(action) for action in actions]


def test_files_of_a_killed_run_confuse_nobody(tmp_path: Path) -> None:
    """They say that ranks are done, have failed, have left: of another run."""
    task = job(tmp_path)

    def interrupted(source: Path, **_: object) -> Iterator[LineImage]:
        if source.name == "4.xml":
            raise KeyboardInterrupt
        yield from read_one(source)

    first = run(
        lambda: compile_shards(task, rank=0, world_size=2, read=read_one, times=QUICK),
        lambda: compile_shards(task, rank=1, world_size=2, read=interrupted, times=QUICK),
    )
    with pytest.raises(RunError, match="Rank 1 failed: it ended with KeyboardInterrupt"):
        first[0].result()
    left = {path.name for path in (tmp_path / ".ds.compiling" / "peers").iterdir()}
    assert {"00000.failed", "00001.failed", "00001.left", "00000.run"} <= left
    second = run(
        *(
            lambda rank=rank: compile_shards(task, rank=rank, world_size=2, read=read_one, times=QUICK)  # type: ignore[misc]
            for rank in (1, 0)
        )
    )
    assert [future.exception() for future in second] == [None, None]
    assert read_manifest(tmp_path / "ds" / "dataset.json").lines == 6
    assert not (tmp_path / ".ds.compiling").exists()


def test_a_process_that_falls_silent_is_named(tmp_path: Path) -> None:
    """A node that is lost says nothing any more; the others must not hold theirs for ever."""
    agreed, given_up = threading.Event(), threading.Event()

    def lost() -> None:
        with peers(tmp_path, 1) as those:
            those.agree()
            agreed.set()
            those._stop.set()  # as if killed: no sign of life from here on
            assert given_up.wait(30)

    def leader() -> None:
        with peers(tmp_path, 0) as those:
            those.agree()
            assert agreed.wait(30)
            try:
                those.wait_for_shares(lambda _: None)
            finally:
                given_up.set()

    waiting, _ = run(leader, lost)
    with pytest.raises(RunError, match=r"Rank 1 has been silent for 1 seconds.*started again, goes on"):
        waiting.result()


def test_all_hear_why_rank_zero_failed(tmp_path: Path) -> None:
    def leader() -> None:
        with peers(tmp_path, 0, 3) as those:
            those.agree()
            raise InputError("no lines.")

    def follower(rank: int) -> None:
        with peers(tmp_path, rank, 3) as those:
            those.agree()
            those.wait_for_finish()

    _, *followers = run(leader, lambda: follower(1), lambda: follower(2))
    for future in followers:
        with pytest.raises(InputError, match=r"^no lines\.$"):
            future.result()


def test_a_failure_is_heard_in_the_middle_of_the_work(tmp_path: Path) -> None:
    """Rank zero's share may take hours more."""

    def leader() -> None:
        with peers(tmp_path, 0) as those:
            those.agree()
            while True:
                those.report(Progress())
                time.sleep(0.02)

    def follower() -> None:
        with peers(tmp_path, 1) as those:
            those.agree()
            raise RunError("the disk is full.")

    leading, _ = run(leader, follower)
    with pytest.raises(RunError, match=r"^Rank 1 failed: the disk is full\.$"):
        leading.result()


def test_a_process_with_another_task_is_refused(tmp_path: Path) -> None:
    """A glob that another node expands differently would leave out sources or take some twice."""
    task, other = job(tmp_path), job(tmp_path, shard_format="webdataset")
    first, second = run(
        lambda: compile_shards(task, rank=0, world_size=2, read=read_one, times=QUICK),
        lambda: compile_shards(other, rank=1, world_size=2, read=read_one, times=QUICK),
    )
    for future in (first, second):
        with pytest.raises(InputError, match="Rank 1 was given other options or ground truth"):
            future.result()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_starts_is_named(tmp_path: Path, rank: int) -> None:
    times = PeerTimes(beat=0.05, silence=1.0, start=0.3, poll=0.05)
    with pytest.raises(RunError, match=f"Rank {1 - rank}.* did not start"):
        compile_shards(job(tmp_path), rank=rank, world_size=2, read=read_one, times=times)


def test_two_compilations_into_one_folder_are_refused(tmp_path: Path) -> None:
    """Each would throw away the other's work."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(source: Path, **_: object) -> Iterator[LineImage]:
        begun.set()
        assert go_on.wait(30)
        yield from read_one(source)

    def second() -> None:
        assert begun.wait(30)
        try:
            compile_shards(job(tmp_path), read=read_one)
        finally:
            go_on.set()

    first, refused = run(lambda: compile_shards(job(tmp_path), read=slow), second)
    with pytest.raises(InputError, match=r"Another process is at work in .*\.ds\.compiling; wait"):
        refused.result()
    assert first.result().lines == 6


def test_progress_of_all_reaches_rank_zero(tmp_path: Path) -> None:
    def leader() -> Progress:
        with peers(tmp_path, 0) as those:
            those.agree()
            heard = those.report(Progress(pages=1, lines=10))
            deadline = time.monotonic() + 20
            while heard.pages < 8 and time.monotonic() < deadline:
                heard = those.report(Progress(pages=1, lines=10))
            those.finish()
            return heard

    def follower() -> None:
        with peers(tmp_path, 1) as those:
            those.agree()
            those.report(Progress(pages=7, lines=20, skipped=3))
            those.wait_for_finish()

    leading, _ = run(leader, follower)
    assert leading.result() == Progress(pages=8, lines=30, skipped=3)
