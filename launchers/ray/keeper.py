"""The keeper of one machine's processes: starts them, watches them, ends them.

It runs by itself beside Ray's worker, in the interpreter of the run, and belongs to nobody: Ray kills its
workers without warning when a job is stopped, a driver dies or an attempt is given up, and the processes of
the run are to save their state all the same. The worker's end of the keeper's standard input is its sign of
life. When that is closed, for whatever reason, the keeper asks its processes to end, waits while they save,
and kills what is left. If the keeper itself is killed, the kernel asks its processes to end.

Messages are JSON objects, one a line. In: ``{"start": …}`` with words, folder and processes, ``{"stop":
seconds}``. Out: ``{"facts": …}`` at once, ``{"ended": …}`` for each process, and the end of the stream when
none is left. How they ended is kept as ``node-<k>.json`` in the folder of the attempt as well, for a driver
whose worker has gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from distrib import __version__
from distrib.files import written_whole

GRACE_SECONDS: Final = 120.0
"""What processes have for saving their state when nobody is left who could say how long."""
NONCE: Final = "shared"
HURRY: Final = "hurry"
"""Written by a driver whose machines have lost one: seconds that the processes of the others still have."""
_LOOK_EVERY = 0.1
_SEEN_WITHIN = 10.0
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, kw_only=True)
class _Process:
    rank: int
    popen: subprocess.Popen[bytes]


class Keeper:
    """The processes of one machine in one attempt; ``node`` is its number among those of the attempt."""

    def __init__(self, attempt: Path, node: int, out: TextIO) -> None:
        self._attempt, self._node, self._out = attempt, node, out
        self._running: list[_Process] = []
        self._codes: dict[int, int] = {}
        self._kill_at: float | None = None
        self._begun = False
        self._next_hurry = 0.0

    def run(self, orders: int) -> None:
        """Obey the ``orders`` that are read from a descriptor until no process is left."""
        self._tell({"facts": facts_of(self._attempt)})
        rest, listening = b"", True
        while not self._begun or self._running:
            if not listening:
                time.sleep(_LOOK_EVERY)
                self._hurry()
            elif select.select([orders], [], [], _LOOK_EVERY)[0]:
                data = os.read(orders, 1 << 16)
                listening = bool(data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
                if not listening:
                    self._end(GRACE_SECONDS)
            self._look()
        self._keep_record()

    def _obey(self, order: Mapping[str, Any]) -> None:
        if "start" in order and not self._begun:
            self._begun = True
            self._start(order["start"])
        if "stop" in order:
            self._end(float(order["stop"]))

    def _start(self, order: Mapping[str, Any]) -> None:
        for process in order["processes"]:
            with Path(process["log"]).open("ab") as log:
                popen = subprocess.Popen(  # noqa: S603
                    order["words"],
                    cwd=order["folder"],
                    env={**os.environ, **process["environment"]},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # Safe here: this process has a single thread.
                    preexec_fn=_end_with_parent,
                )
            self._running.append(_Process(rank=process["rank"], popen=popen))

    def _end(self, grace: float) -> None:
        """Ask all to end, once; the shortest grace counts. What has not begun never will."""
        self._begun = True
        if self._kill_at is None:
            for process in self._running:
                process.popen.terminate()
        limit = time.monotonic() + grace
        self._kill_at = limit if self._kill_at is None else min(limit, self._kill_at)

    def _hurry(self) -> None:
        """A driver that cannot reach this otherwise may know that waiting is no use: a machine is lost."""
        now = time.monotonic()
        if now >= self._next_hurry:
            self._next_hurry = now + 1.0
            with suppress(OSError, ValueError):
                self._end(float((self._attempt / HURRY).read_text(encoding="utf-8")))

    def _look(self) -> None:
        overdue = self._kill_at is not None and time.monotonic() > self._kill_at
        for process in list(self._running):
            if overdue:
                process.popen.kill()
                process.popen.wait()
            code = process.popen.poll()
            if code is None:
                continue
            self._running.remove(process)
            # Reading processes of one that was killed may be left.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.popen.pid, signal.SIGKILL)
            self._codes[process.rank] = code
            self._tell({"ended": {"rank": process.rank, "code": code}})

    def _tell(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # Nobody is left to listen.
            print(json.dumps(message), file=self._out, flush=True)

    def _keep_record(self) -> None:
        codes = {str(rank): code for rank, code in self._codes.items()}
        with suppress(OSError), written_whole(record_path(self._attempt, self._node)) as file:
            file.write(json.dumps({"host": platform.node(), "codes": codes}).encode())


def record_path(attempt: Path, node: int) -> Path:
    """Where a keeper leaves how its processes have ended."""
    return attempt / f"node-{node}.json"


def facts_of(attempt: Path) -> dict[str, Any]:
    """What this machine has and sees, for the driver to compare with the others."""
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "ketos": __version__,
        "seen": _seen(attempt / NONCE),
        "writable": os.access(attempt, os.W_OK),
    }


def _seen(path: Path) -> str | None:
    """What the driver has just written on the shared disk; network file systems may show it later."""
    deadline = time.monotonic() + _SEEN_WITHIN
    while True:
        with suppress(OSError):
            # Opening the folder makes NFS ask the server anew which names are in it.
            if path.name in os.listdir(path.parent):  # noqa: PTH208
                return path.read_text(encoding="utf-8")
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


def main() -> int:
    """``python -m launchers.ray.keeper ATTEMPT NODE``"""
    attempt, node = Path(sys.argv[1]), int(sys.argv[2])
    # Ray kills the children of a worker with it; a grandchild lives on.
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Keeper(attempt, node, sys.stdout).run(sys.stdin.fileno())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
