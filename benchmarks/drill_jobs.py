"""Jobs of `ketos` for the kill drill: real processes, started by torchrun or forked with all imports done.

Importing torch and Lightning takes seconds, which a hundred starts would pay a hundred times. A forked job is
made of the same processes otherwise: a launcher with a session of its own, which starts the ranks with the
variables of torchrun and stops the others when one fails, as torchrun does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import OURS, ROOT

_GRACE = 30.0
"""Seconds that a launcher gives the processes that it stops."""


@dataclass(kw_only=True)
class Job:
    """A started job. ``ranks`` are the process ids by rank, empty until they are known."""

    launcher: int
    ranks: list[int]
    processes: int
    printed: Path
    real: bool
    began: float
    process: subprocess.Popen[bytes] | None = None
    code: int = 0
    """The launcher's exit code, once it has been ended."""

    @property
    def output(self) -> str:
        """What it has printed on both streams."""
        return self.printed.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether the launcher or a rank is still there."""
        self.find_ranks()
        return any(map(alive, {self.launcher, *self.ranks}))

    @property
    def rambles(self) -> bool:
        """Whether it has printed more than a sentence of what ended it: a stack with our own code in it.

        Libraries have their own to say: torchrun, and multiprocessing where a process at the other end goes.
        """
        return "Error: Unexpected" in self.output or f'  File "{ROOT / "distrib"}' in self.output

    def find_ranks(self) -> bool:
        """Look for ranks that torchrun has started; whether all are known."""
        if len(self.ranks) < self.processes:
            numbered = {variables(pid).get("RANK"): pid for pid in children(self.launcher)}
            found = [numbered.get(str(rank)) for rank in range(self.processes)]
            if None not in found:
                self.ranks = [pid for pid in found if pid is not None]
        return len(self.ranks) == self.processes

    def readers(self) -> list[int]:
        """The processes that read data for the ranks."""
        return [reader for rank in self.ranks for reader in children(rank)]

    def tree(self) -> list[int]:
        """All processes of the job."""
        found = list(dict.fromkeys([self.launcher, *self.ranks]))
        for pid in found:
            found += [child for child in children(pid) if child not in found]
        return found

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end of launcher and ranks; False where one is still there after that time."""
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def end(self) -> int:
        """Leave nothing of it behind, readers of killed ranks among them; the launcher's exit code."""
        kill(self.tree())
        with suppress(ProcessLookupError):
            os.killpg(self.launcher, signal.SIGKILL)
        if self.process is not None:
            self.code = self.process.wait()
        else:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.launcher, 0)[1])
        return self.code


def kill(pids: Sequence[int]) -> None:
    """SIGKILL, in this order; processes that have ended are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process is there and not just waiting for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The child processes of a process, whichever of its threads has started them."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def variables(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    with suppress(OSError):
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {}


def launched(words: Sequence[str], *, processes: int, printed: Path) -> Job:
    """A job under torchrun; of one process without."""
    command = [*OURS, *words]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *torchrun, "-m", "distrib", *words]
    with printed.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    ranks = [process.pid] if processes == 1 else []
    return Job(
        launcher=process.pid,
        ranks=ranks,
        processes=processes,
        printed=printed,
        real=True,
        began=time.time(),
        process=process,
    )


def forked(words: Sequence[str], *, processes: int, printed: Path, notices_after: float = 0.1) -> Job:
    """The same job forked from this process, which must have imported ``distrib.training.run`` before.

    Its launcher looks every ``notices_after`` seconds whether a rank has failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.time()
    reading, writing = os.pipe()

    def launch() -> int:
        os.close(reading)
        os.setsid()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        _print_to(printed)
        ranks = _start_ranks(words, processes)
        os.write(writing, json.dumps(ranks).encode())
        os.close(writing)
        return _watched(ranks, notices_after)

    launcher = _fork(launch)
    os.close(writing)
    # Not to the end: the ranks have the other side as well.
    ranks = json.loads(os.read(reading, 4096))
    os.close(reading)
    return Job(launcher=launcher, ranks=ranks, processes=processes, printed=printed, real=False, began=began)


def _fork(work: Callable[[], int]) -> int:
    """The process id of a child that does ``work``, exits with what it returns, and nothing else."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _start_ranks(words: Sequence[str], processes: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if processes == 1:
        return [_fork(lambda: _ketos(words, {}))]
    placed: list[dict[str, Any]] = [
        {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(processes)
    ]
    return [_fork(lambda place=place: _ketos(words, place)) for place in placed]


def _ketos(words: Sequence[str], place: dict[str, Any]) -> int:
    os.environ.update({name: str(value) for name, value in place.items()})
    sys.argv = ["ketos", *words]
    from distrib.__main__ import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _watched(ranks: Sequence[int], notices_after: float) -> int:
    """Wait for the ranks as torchrun does: when one fails the others are told to end. The exit code."""
    codes: dict[int, int] = {}
    told = None
    while len(codes) < len(ranks):
        for pid in ranks:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
        left = [pid for pid in ranks if pid not in codes]
        if told is None and left and any(codes.values()):
            told = time.monotonic()
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        elif told is not None and time.monotonic() - told > _GRACE:
            kill(left)
        time.sleep(notices_after if told is None and not codes else 0.02)
    return next((abs(code) for code in codes.values() if code), 0)


def _print_to(path: Path) -> None:
    """Send both streams to a file, and read from nowhere."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, target in ((0, nothing), (1, file), (2, file)):
        os.dup2(target, stream)
    os.close(file)
    os.close(nothing)
