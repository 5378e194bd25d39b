"""The processes of one attempt on this machine, under torch's elastic agent.

A program of its own, so that the agent of the launch needs no torch, and can end it whatever it does:
``python -m launchers.local.elastic PROCESSES FOLDER GRACE WORD…`` runs the words as that many processes, each
with torchrun's variables and a log in the folder, and leaves the exit codes of those that failed in
``codes.json``.

SIGUSR2, SIGHUP and SIGTERM, which it gets when the agent of the launch is gone, are handed on as SIGTERM to
the processes, which save and end; those that are there after GRACE seconds are killed. The signals are
blocked and waited for by a thread of their own: none is lost while torch is imported or starts processes, and
torch's own answer, which allows processes less time, never comes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from distrib.parent_process import end_with_parent
from launchers.local import ranks
from launchers.local.rank import SIGNALS_OF_AGENT
from launchers.programs import module_words

CODES: Final = "codes.json"
_LOOK: Final = 0.1


def main(words: list[str]) -> int:
    """Run the processes; 0 where all ended well, else the first bad exit code, 128 + n for signal n."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_OF_AGENT)
    processes, folder, grace, command = int(words[0]), Path(words[1]), float(words[2]), words[3:]
    # Processes must not go on when the agent of the launch is killed: nobody would watch them.
    end_with_parent(signal.SIGTERM)
    told = threading.Event()
    threading.Thread(target=_end_when_told, args=(grace, told), daemon=True).start()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else a restart may find the port taken
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": processes,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
        "monitor_interval": 0.1,
        "local_addr": "127.0.0.1",
    }
    if "shutdown_timeout" in {field.name for field in dataclasses.fields(LaunchConfig)}:
        config["shutdown_timeout"] = round(grace)
    if told.is_set():
        return 128 + signal.SIGTERM
    program = (*module_words(sys.executable, "launchers.local.rank")[1:], str(os.getpid()), *command)
    try:
        elastic_launch(LaunchConfig(**config), sys.executable)(*program)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        (folder / CODES).write_text(json.dumps(codes), encoding="utf-8")
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def read_codes(folder: Path) -> dict[int, int]:
    """The exit codes of processes that failed, negative for signals; empty where they were not written."""
    try:
        values = json.loads((folder / CODES).read_bytes())
        return {int(rank): int(code) for rank, code in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _end_when_told(grace: float, told: threading.Event) -> None:
    """Ask processes to end once a signal has come, those too that are only being started; then kill them."""
    signal.sigwait(SIGNALS_OF_AGENT)
    told.set()
    deadline = time.monotonic() + grace
    asked: set[int] = set()
    while True:
        left = _children()
        if time.monotonic() > deadline:
            ranks.send(left, signal.SIGKILL)
        ranks.send([each for each in left if each not in asked], signal.SIGTERM)
        asked.update(left)
        time.sleep(_LOOK)


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
