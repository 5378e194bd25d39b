"""Jobs of several processes to look at and to hurt while they run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import forked
from .launching import WAIT_SECONDS, command, environment, kill_tree


@contextmanager
def started(
    world_size: int, *arguments: object, printed: Path, variables: dict[str, str] | None = None
) -> Iterator[forked.Job]:
    """A job that is running, whose processes nobody watches, and of which nothing is left behind."""
    job = forked.shared().start(*arguments, processes=world_size, printed=printed, variables=variables)
    try:
        yield job
    finally:
        job.kill()


def meeting_place() -> dict[str, str]:
    """Where processes of a job find each other, by torchrun's variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


@contextmanager
def two_of(
    program: str, folder: Path, *words: object, variables: Mapping[str, str] | None = None
) -> Iterator[list[forked.Job]]:
    """Two processes of a program in Python, by rank, started and looked after one by one.

    The program lies in ``folder`` meanwhile, and the streams of each are kept apart.
    """
    script = folder / "program.py"
    script.write_text(program, encoding="utf-8")
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **meeting_place(), **(variables or {})}
    jobs = []
    try:
        for rank in ("0", "1"):
            place = {"RANK": rank, "LOCAL_RANK": rank, **common}
            jobs.append(forked.shared().start(*words, script=script, variables=place, apart=True))
        yield jobs
    finally:
        for job in jobs:
            job.kill()
        script.unlink()


def on_two_nodes(folders: Sequence[Path], *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """Two processes, each a node of its own in a working folder of its own, by rank; they must end."""
    meeting = meeting_place()
    jobs = []
    for rank, folder in enumerate(folders):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        place |= {"GROUP_RANK": str(rank), **meeting}
        jobs.append(forked.shared().start(*arguments, cwd=folder, variables=place, apart=True))
    try:
        codes = [job.wait(120)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    ended = zip(jobs, codes, strict=True)
    return [subprocess.CompletedProcess(arguments, code, job.output, job.stderr) for job, code in ended]


class TorchrunJob:
    """Processes under torchrun, which ends the others where one fails."""

    def __init__(self, process: subprocess.Popen[bytes], printed: Path) -> None:
        self.process = process
        self._printed = printed

    @property
    def output(self) -> str:
        """What it has printed on both streams so far."""
        return self._printed.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """The sentences of processes that failed; nothing else may begin like them."""
        return [line for line in self.output.splitlines() if line.startswith("Error: ")]

    def wait_for(self, reached: Callable[[], object]) -> None:
        """Return once ``reached``; the job must not end before."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def ends_within(self, seconds: float) -> int:
        """The exit code of torchrun; fails where the job has not ended by then."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        return next(pid for pid in children(self.process.pid) if variables(pid).get("RANK") == str(number))


@contextmanager
def under_torchrun(
    world_size: int, *arguments: object, printed: Path, variables: dict[str, str] | None = None
) -> Iterator[TorchrunJob]:
    """A job that is running as a user starts one with torchrun, and of which nothing is left behind."""
    with printed.open("wb") as file:
        process = subprocess.Popen(
            command(world_size, *arguments),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**environment(), **(variables or {})},
        )
    try:
        yield TorchrunJob(process, printed)
    finally:
        kill_tree(process.pid)
        process.wait()


def kill(pid: int) -> None:
    """As the system does where memory is short."""
    os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def variables(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    with contextlib.suppress(OSError):
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {}
