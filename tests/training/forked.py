"""Runs of real processes, forked from one that has imported everything, and hurt where a test says.

Importing torch and Lightning takes seconds, which a hundred runs would pay a hundred times. Processes are
forked from a server of their own, not from that of the tests, whose threads a fork would not survive.

This file is the server as well: it takes orders on its standard input, one JSON object a line, and answers
each with a line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

WAIT_SECONDS = 240.0

_LOADED = (
    "distrib.cli.main",
    "distrib.cli.compiling",
    "distrib.training.run",
    "distrib.training.setup",
    "distrib.runtime.strategies.plain",
)


@dataclass(frozen=True, kw_only=True)
class Harm:
    """What befalls a process right before, or right ``after``, the ``calls``-th calls (from 1) of a function.

    ``place`` is ``module:name`` or ``module:Class.name``; ``rank`` None: every process. ``do`` is an error to
    raise, a signal that the process sends itself, or ``infinite``: the result is multiplied by infinity.
    """

    place: str
    calls: tuple[int, ...]
    do: Literal["raise", "kill", "term", "usr1", "usr2", "interrupt", "infinite", "full", "memory"]
    after: bool = False
    rank: int | None = 0


class Job:
    """A command that is running or has run as one process or several."""

    def __init__(self, server: Server, pids: list[int], printed: Path) -> None:
        self.pids = pids
        self._server = server
        self._printed = printed

    @property
    def output(self) -> str:
        """What all its processes have printed on both streams so far."""
        return self._printed.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> list[str]:
        """The sentences of processes that failed."""
        return [line for line in self.output.splitlines() if line.startswith("Error: ")]

    def codes(self) -> list[int | None]:
        """The exit code of each process that has ended, negative where a signal ended it."""
        return [self._server.ask({"code": pid}) for pid in self.pids]

    def wait(self, seconds: float = WAIT_SECONDS) -> list[int]:
        """The exit codes; fails, and leaves nothing behind, where a process has not ended in time."""
        deadline = time.monotonic() + seconds
        while True:
            codes = self.codes()
            ended = [code for code in codes if code is not None]
            if len(ended) == len(codes):
                return ended
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {seconds} s, {codes}:\n{self.output}")
            time.sleep(0.01)

    def wait_for(self, reached: Callable[[], object]) -> None:
        """Return once ``reached``; the job must not end before."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached():
            assert None in self.codes(), self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL all its processes, and wait for their end."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        while None in self.codes():
            time.sleep(0.005)


class Server:
    """Starts jobs. Use as a context; leaving it ends what is still running."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._jobs: list[Job] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._jobs:
            job.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(
        self,
        *words: object,
        processes: int = 1,
        harm: Sequence[Harm] = (),
        cwd: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> Job:
        """Start ``ketos`` with these words, and with these variables in the environment."""
        printed = self._directory / f"printed-{len(self._jobs)}.txt"
        printed.write_bytes(b"")
        pids = self.ask(
            {
                "words": [str(word) for word in words],
                "processes": processes,
                "harm": [asdict(each) for each in harm],
                "cwd": None if cwd is None else str(cwd),
                "printed": str(printed),
                "variables": variables or {},
            }
        )
        self._jobs.append(Job(self, pids, printed))
        return self._jobs[-1]

    def run(
        self,
        *words: object,
        processes: int = 1,
        harm: Sequence[Harm] = (),
        cwd: Path | None = None,
        expect: int = 0,
        seconds: float = WAIT_SECONDS,
    ) -> str:
        """Run to the end and check every exit code; what was printed."""
        job = self.start(*words, processes=processes, harm=harm, cwd=cwd)
        assert set(job.wait(seconds)) == {expect}, f"{job.codes()}: {job.output}"
        return job.output

    def ask(self, order: dict[str, Any]) -> Any:
        """The answer to an order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Take orders until there are no more."""
    for name in _LOADED:
        importlib.import_module(name)
    codes: dict[int, int] = {}
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        if "code" in order:
            pid = order["code"]
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer: Any = codes.get(pid)
        else:
            answer = _start(order)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _start(order: dict[str, Any]) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world_size = order["processes"]
    pids = []
    for rank in range(world_size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world_size}
        place |= {"LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pid = os.fork()
        if pid == 0:
            _be(order, {name: str(value) for name, value in place.items()} if world_size > 1 else {})
        pids.append(pid)
    return pids


def _be(order: dict[str, Any], place: dict[str, str]) -> None:
    """Become a process of the job."""
    code: Any = 70
    try:
        os.setsid()
        printed = os.open(order["printed"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for stream, target in ((0, nothing), (1, printed), (2, printed)):
            os.dup2(target, stream)
        os.environ.update({**place, **order["variables"]})
        os.chdir(order["cwd"] or "/")
        rank = int(place.get("RANK", 0))
        for each in order["harm"]:
            harm = Harm(**each)
            if harm.rank in (None, rank):
                _inflict(harm)
        sys.argv = ["ketos", *order["words"]]
        from distrib.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _inflict(harm: Harm) -> None:
    module, _, path = harm.place.partition(":")
    owner: Any = importlib.import_module(module)
    *owners, name = path.split(".")
    for each in owners:
        owner = getattr(owner, each)
    original, counter = getattr(owner, name), _count()

    def hurt(*arguments: Any, **named: Any) -> Any:
        struck = next(counter) in harm.calls
        if struck and not harm.after:
            _strike(harm)
        result = original(*arguments, **named)
        if struck and harm.after:
            _strike(harm)
        return result * float("inf") if struck and harm.do == "infinite" else result

    setattr(owner, name, hurt)


def _count() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def _strike(harm: Harm) -> None:
    signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT}
    signals |= {"usr1": signal.SIGUSR1, "usr2": signal.SIGUSR2}
    if harm.do in signals:
        os.kill(os.getpid(), signals[harm.do])
    elif harm.do == "raise":
        raise ValueError("something nobody has thought of")
    elif harm.do == "full":
        raise OSError(28, "No space left on device")
    elif harm.do == "memory":
        raise MemoryError


if __name__ == "__main__":
    # A stranger's Python would look for modules of the tests beside this file.
    sys.path.pop(0)
    serve()
