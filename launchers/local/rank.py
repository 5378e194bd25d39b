"""The beginning of a process of an attempt: it gets its log and its tie to its parent, and is replaced.

``python -m launchers.local.rank PARENT WORD…`` under torch's elastic agent, the process PARENT, which gives
it a rank.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from distrib.errors import InputError
from distrib.parent_process import end_with_parent
from distrib.runtime.directory.endings import ATTEMPT_VARIABLE, Ending, write_ending
from launchers.local import ranks
from launchers.places import rank_log

SIGNALS_OF_AGENT = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""Signals that the elastic agent waits for, and has blocked therefore, which its processes inherit."""


def main(words: list[str]) -> int:
    """Become the program ``words[1:]``; returns an exit code where that cannot be."""
    parent, command = int(words[0]), words[1:]
    folder, rank = Path(os.environ[ATTEMPT_VARIABLE]), int(os.environ["RANK"])
    end_with_parent(signal.SIGTERM)
    log = os.open(rank_log(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    ranks.register(folder, rank)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS_OF_AGENT)
    if os.getppid() != parent:  # gone before it was asked to tell: nobody watches over this process
        return 128 + signal.SIGTERM
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        return _refused(folder, rank, command[0], error)


def _refused(folder: Path, rank: int, program: str, error: OSError) -> int:
    host, code = socket.gethostname(), InputError.exit_code
    sentence = f"--python {program}: cannot be run on {host} ({error.strerror}); give an interpreter."
    print(f"Error: {sentence}", file=sys.stderr, flush=True)
    ending = Ending(rank=rank, host=host, pid=os.getpid(), exit_code=code, cause="input", sentence=sentence)
    write_ending(folder, ending)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
