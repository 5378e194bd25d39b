"""Runs of real processes, forked from one that has imported everything, and hurt where a test says.

Importing torch and Lightning takes seconds, which a hundred runs would pay a hundred times. Processes are
forked from a server of their own, not from that of the tests, whose threads a fork would not survive. Nobody
watches them, as under srun: where one fails, the others have to notice by themselves.

This file is the server as well: it takes orders on its standard input, one JSON object a line, and answers
each with a line.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
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
    "distrib.runtime.strategies.deepspeed",
    "distrib.runtime.strategies.fully_sharded",
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

    def __init__(self, server: Server, pids: list[int], printed: Path, complained: Path) -> None:
        self.pids = pids
        self._server = server
        self._printed, self._complained = printed, complained

    @property
    def output(self) -> str:
        """What all its processes have printed so far, on both streams unless they were to be kept apart."""
        return self._printed.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """What they have printed on standard error, where the streams were to be kept apart."""
        return self._complained.read_text(encoding="utf-8", errors="replace")

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

    def ends_within(self, seconds: float) -> int:
        """The worst exit code of those that no signal has ended; fails where one has not ended by then."""
        return max(self.wait(seconds))

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        return self.pids[number]

    def wait_for(self, reached: Callable[[], object]) -> None:
        """Return once ``reached``; the job must not end before."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not reached():
            assert None in self.codes(), self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL all its processes, their readers included, and wait for their end."""
        for pid, code in zip(self.pids, self.codes(), strict=True):
            # The number of one that has ended may be another's by now.
            if code is None:
                os.killpg(pid, signal.SIGKILL)
        while None in self.codes():
            time.sleep(0.005)


class Server:
    """Starts jobs, and keeps what they print in ``directory``. Leaving its context ends what is running."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._jobs: list[Job] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # As `ketos` has it before anything is imported.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    @property
    def pid(self) -> int:
        """The process that processes of jobs are forked from, and have their limits of."""
        return self._process.pid

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
        printed: Path | None = None,
        apart: bool = False,
        script: Path | None = None,
    ) -> Job:
        """Start ``ketos``, or a ``script``, with these words, and with these variables in the environment.

        It inherits the working folder and the environment of the tests as they are now. What it prints on
        standard error is kept ``apart`` from the rest, which goes to ``printed``, where that is asked for.
        """
        printed = printed or self.directory / f"printed-{len(self._jobs)}.txt"
        complained = printed.with_suffix(".err") if apart else printed
        for file in (printed, complained):
            file.write_bytes(b"")
        pids = self.ask(
            {
                "words": [str(word) for word in words],
                "script": None if script is None else str(script),
                "processes": processes,
                "harm": [asdict(each) for each in harm],
                "cwd": str(cwd or Path.cwd()),
                "printed": str(printed),
                "complained": str(complained),
                "variables": {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})},
            }
        )
        self._jobs.append(Job(self, pids, printed, complained))
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


@functools.cache
def shared() -> Server:
    """The one server of this process of tests, which is started when it is wanted first."""
    return Server(Path(tempfile.mkdtemp(prefix="ketos-tests-")))


def end_shared() -> None:
    """End it, where it was started, with what it runs; remove what was printed."""
    if shared.cache_info().currsize:
        with shared() as server:
            folder = server.directory
        shutil.rmtree(folder, ignore_errors=True)


def serve() -> None:
    """Take orders until there are no more."""
    for name in _LOADED:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("pandas")  # pyarrow wants it where it is installed
    # Else the first collection of each process would copy the pages of all that is there.
    gc.freeze()
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
    code: Any = 1 if order["script"] else 70  # ketos itself leaves no exception
    try:
        os.setsid()
        printed = os.open(order["printed"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        complained = os.open(order["complained"], os.O_WRONLY | os.O_APPEND)
        for stream, target in ((0, nothing), (1, printed), (2, complained)):
            os.dup2(target, stream)
        os.environ.clear()
        os.environ.update({**order["variables"], **place})
        tempfile.tempdir = None  # as TMPDIR says now
        os.chdir(order["cwd"])
        rank = int(place.get("RANK", 0))
        for each in order["harm"]:
            harm = Harm(**each)
            if harm.rank in (None, rank):
                _inflict(harm)
        sys.argv = [order["script"] or "ketos", *order["words"]]
        if order["script"]:
            runpy.run_path(order["script"], run_name="__main__")
        else:
            from distrib.__main__ import main

            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        _end_as_an_interpreter_does()
        os._exit(code)


def _end_as_an_interpreter_does() -> None:
    """Wait for threads that are no daemons and call what is registered; the server's own is not touched."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()


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
