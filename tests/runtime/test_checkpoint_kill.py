"""A process killed at any instant of a save, or with the disk full, leaves a directory to go on from."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from distrib.runtime.checkpoints import writing as checkpoint_writing
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import best, newest_valid
from distrib.runtime.checkpoints.rows import read_rows
from distrib.runtime.checkpoints.store import CheckpointStore

from .checkpoint_states import saved, store_of, tensors

_EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate")


def in_child(work: Callable[[int], None]) -> tuple[int, bytes]:
    """Run ``work`` in a child process with a pipe to write to; its status, and what it wrote."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(writing)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    return os.waitpid(child, 0)[1], told


def kill_at(number: int, directory: Path) -> None:
    """Kill this process right before the ``number``-th thing that it does to files in ``directory``."""
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(event: str, arguments: tuple[object, ...]) -> None:
        if event in _EVENTS and str(directory) in str(arguments[0]):
            tick()

    write = checkpoint_writing._Sink.write

    def heard_writing(self: checkpoint_writing._Sink, data: object) -> int:
        if self.bytes // 2500 != (self.bytes + memoryview(data).nbytes) // 2500:  # type: ignore[arg-type]
            tick()  # now and then: torch writes in many small pieces
        return write(self, data)

    checkpoint_writing._Sink.write = heard_writing  # type: ignore[method-assign]
    os.fsync = lambda descriptor: tick()
    sys.addaudithook(heard)


def run_of(directory: Path, sharded: bool) -> Iterator[int]:
    """A run that names, replaces, links and removes; yields the number of a save that is done."""
    store = store_of(directory, sharded=sharded, keep_best=1, keep_last=1)
    for number, (name, score) in enumerate([("a", 0.2), ("a", 0.4), ("checkpoint_03-0.9000", 0.9)], 1):
        saved(store, number, score, f"{name}.ckpt")
        store.finish()
        yield number


@pytest.mark.parametrize(
    "sharded", [pytest.param(False, id="file"), pytest.param(True, id="folder", marks=pytest.mark.slow)]
)
def test_killed_anywhere_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a node that fails at the wrong moment would end a run of weeks."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the machine goes on, only processes end
    number, killed = 0, True
    moments = 0
    while killed:
        number += 1
        directory = tmp_path / str(number)
        directory.mkdir()

        def work(pipe: int, number: int = number, directory: Path = directory) -> None:
            kill_at(number, directory)
            for done in run_of(directory, sharded):
                os.write(pipe, bytes([done]))

        status, told = in_child(work)
        killed = os.WIFSIGNALED(status)
        moments += killed
        done = len(told)
        assert killed or done == 3
        found = newest_valid(directory, report=pytest.fail)
        reader = None if found is None else open_checkpoint(found)
        step = 0 if reader is None else reader.common["step"]
        assert step in (done, done + 1), f"killed at {number}, {done} saves done, found {found}"
        if reader is not None:
            for key, tensor in tensors(step).items():
                assert (reader.tensor(key) == tensor).all()
            assert best(directory)
        # The next run tidies up and goes on.
        store = store_of(directory, sharded=sharded, keep_best=1, keep_last=1)
        for path in directory.iterdir():
            assert not path.name.startswith(".")
            # Where the new one had not taken the name yet, the one that it replaces is still needed.
            assert (
                "replaced" not in path.name
                or not (directory / f"{path.name.partition('.')[0]}.ckpt").exists()
            )
        saved(store, 9)
        store.finish()
        assert newest_valid(directory, report=pytest.fail) == directory / "step_00000009.ckpt"
        assert set(read_rows(directory)) <= {path.name for path in directory.glob("*.ckpt")}
    assert moments > 40, moments


def full_disk_drill(directory: Path, make_full: Callable[[], None], make_room: Callable[[], None]) -> None:
    """Saves before, on and after a full disk."""
    events: list[str] = []
    for sharded in (False, True):
        folder = directory / str(sharded)
        folder.mkdir()
        store: CheckpointStore = store_of(
            folder, sharded=sharded, on_event=lambda kind, _: events.append(kind)
        )
        before = saved(store, 1)
        make_full()
        for failures in (1, 2):
            saved(store, 2)
            assert store.failures == failures
        assert newest_valid(folder, report=pytest.fail) == before
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
        make_room()
        after = saved(store, 2)
        assert store.failures == 0
        assert newest_valid(folder, report=pytest.fail) == after
        store.finish()
    assert events == ["save", "save_failed", "save_failed", "save"] * 2


def test_a_file_size_limit_fails_the_save_and_nothing_else(tmp_path: Path) -> None:
    """Else a quota that is used up would take the process, or the checkpoints before, with it."""

    def work(pipe: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        full_disk_drill(
            tmp_path,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1])),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, unlimited),
        )

    assert in_child(work) == (0, b"")


def test_a_full_disk_fails_the_save_and_nothing_else(tmp_path: Path) -> None:
    """Else a full disk would leave half a checkpoint, or no way back."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    ballast = disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            with suppress(OSError):
                while True:
                    file.write(bytes(1024))
            # Room for a row of the record and the beginning of a checkpoint.
            file.truncate(ballast.stat().st_size - 4096)

    try:
        full_disk_drill(disk, fill, ballast.unlink)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
