"""The beginning of a process of an attempt: it gets its log and its tie to the agent, and is replaced.

``python -m launchers.local.rank WORD…`` under torch's elastic agent, which gives it a rank.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from distrib.parent_process import end_with_parent
from distrib.runtime.directory.endings import ATTEMPT_VARIABLE
from launchers.places import rank_log


def main(words: list[str]) -> None:
    """Become the program ``words``; does not return."""
    end_with_parent(signal.SIGTERM)
    log = rank_log(Path(os.environ[ATTEMPT_VARIABLE]), int(os.environ["RANK"]))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.execvp(words[0], words)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
