"""The processes of one attempt on this machine, under torch's elastic agent.

A program of its own, so that the agent of the launch needs no torch, and can end it whatever it does:
``python -m launchers.local.elastic PROCESSES FOLDER WORD…`` runs the words as that many processes, each with
torchrun's variables and a log in the folder, and leaves the exit codes of those that failed in
``codes.json``. SIGUSR2 is handed on as SIGTERM to the processes, which save and end; any other signal that
ends programs ends them too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from distrib.parent_process import end_with_parent

CODES: Final = "codes.json"


def main(words: list[str]) -> int:
    """Run the processes; 0 where all ended well, else the first bad exit code, 128 + n for signal n."""
    processes, folder, command = int(words[0]), Path(words[1]), words[2:]
    # Processes must not go on when the agent of the launch is killed: nobody would watch them.
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGUSR2, _hand_on)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else a restart may find the port taken
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    try:
        elastic_launch(config, sys.executable)("-m", "launchers.local.rank", *command)
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


def _hand_on(*_: Any) -> None:
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
