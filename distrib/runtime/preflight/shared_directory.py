"""Whether all nodes see one run directory: what one writes the others read, and the other way round."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distrib.errors import InputError
from distrib.files import write_error
from distrib.runtime.preflight.wording import place
from distrib.runtime.processes import Processes

PREFIX: Final = ".preflight-"
PATIENCE = 35.0
"""Seconds for a file to be seen by other nodes: NFS clients keep what they know of a folder for a while, with
the usual options for half a minute."""
_INTERVAL = 0.05
_LONGEST_INTERVAL = 1.0


def check_shared(
    processes: Processes, directory: Path, hosts: Sequence[str], *, patience: float = PATIENCE
) -> float:
    """Seconds until all processes have seen one another's files in ``directory``, which exists at rank zero.

    Raises InputError, naming a process, where it finds another directory than rank zero, or where it may not
    write. Of each node one process writes; nothing stays. Called by all processes.
    """
    began = time.monotonic()
    with _nonce(processes, directory) as nonce:
        # Nobody looks for a file before it was written: that there is none would be remembered for longer.
        answers = processes.gather(_answer(processes, directory, nonce, patience))
        unseen = processes.on_first(lambda: _unseen(answers, directory, nonce, patience))
        for rank, answer in enumerate(answers):
            problem = ""
            if not answer.seen:
                problem = f"{place(rank, hosts)} does not find what {place(0, hosts)} wrote there"
                problem += f" ({answer.error})"
            elif answer.error:
                problem = f"{place(rank, hosts)} may not write there ({answer.error})"
            elif rank in unseen:
                problem = f"{place(0, hosts)} does not find what {place(rank, hosts)} wrote there"
            if problem:
                processes.stop(
                    InputError(
                        f"{directory}: {problem}; give with -o a folder on a disk that all nodes share and "
                        "you may write to (NFS, Lustre, BeeGFS), not one of each machine or container."
                    )
                )
    return time.monotonic() - began


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """Whether a process has seen the nonce and has written its answer, or why not."""

    seen: bool
    wrote: bool = False
    error: str = ""


@contextmanager
def _nonce(processes: Processes, directory: Path) -> Iterator[str]:
    """A name that rank zero has written to a file of that name; it and all answers are gone afterwards."""

    def write() -> str:
        nonce = f"{PREFIX}{secrets.token_hex(8)}"
        try:
            for left in directory.glob(
                f"{PREFIX}*"
            ):  # by a run that was killed; this one holds the directory
                left.unlink(missing_ok=True)
            (directory / nonce).write_text(nonce, encoding="ascii")
        except OSError as error:
            raise write_error(directory, error) from error
        return nonce

    nonce = processes.on_first(write)
    try:
        yield nonce
    finally:
        rank = processes.topology.rank
        names = [_answer_name(nonce, rank)]
        if processes.topology.first:
            with suppress(OSError):
                names = [path.name for path in directory.glob(f"{nonce}*")]
        for name in names:
            with suppress(OSError):
                (directory / name).unlink(missing_ok=True)


def _answer(processes: Processes, directory: Path, nonce: str, patience: float) -> _Answer:
    """Read the nonce and, as one process of a node, write an answer."""
    topology = processes.topology
    if topology.first:
        return _Answer(seen=True)
    reason = _missing(directory / nonce, nonce, time.monotonic() + patience)
    if reason:
        return _Answer(seen=False, error=reason)
    if topology.local_rank:
        return _Answer(seen=True)
    try:
        name = _answer_name(nonce, topology.rank)
        (directory / name).write_text(name, encoding="ascii")
    except OSError as error:
        return _Answer(seen=True, error=error.strerror or str(error))
    return _Answer(seen=True, wrote=True)


def _unseen(answers: Sequence[_Answer], directory: Path, nonce: str, patience: float) -> list[int]:
    """The processes whose answers were written and do not appear."""
    deadline = time.monotonic() + patience
    names = {rank: _answer_name(nonce, rank) for rank, answer in enumerate(answers) if answer.wrote}
    return [rank for rank, name in names.items() if _missing(directory / name, name, deadline)]


def _answer_name(nonce: str, rank: int) -> str:
    return f"{nonce}-{rank}"


def _missing(path: Path, content: str, deadline: float) -> str:
    """Why a file does not have its content at the ``deadline``; empty as soon as it has."""
    pause = _INTERVAL
    while True:
        _ask_anew(path.parent)
        try:
            if path.read_text(encoding="ascii", errors="replace") == content:
                return ""
            reason = "other content"
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() >= deadline:
            return reason
        time.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_INTERVAL)


def _ask_anew(directory: Path) -> None:
    """Opening a folder makes NFS ask for what is in it; the folder itself may be new in the one above."""
    for folder in (directory.parent, directory):
        # The folder above may be closed to this user, and what is wrong with this one its file will tell.
        with suppress(OSError):
            os.close(os.open(folder, os.O_RDONLY))
