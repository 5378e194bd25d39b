"""The errors a user is meant to read.

Each carries one sentence that names the file, line id or option and the way out. The command line
prints that sentence and exits with the class's ``exit_code``; a traceback appears only under ``-vv``.
"""

from __future__ import annotations

from typing import ClassVar


class KetosError(Exception):
    """Base of all errors with a sentence for the user; ``str(error)`` is that sentence."""

    exit_code: ClassVar[int] = 1


class InputError(KetosError):
    """Bad usage or bad input: an option, a configuration key, a file. Exit code 2."""

    exit_code: ClassVar[int] = 2


class DirectoryInUse(InputError):
    """Another process has the directory; it may be about to end."""


class RunError(KetosError):
    """A run that began and could not go on. Exit code 1."""


class Unexpected(RunError):
    """An error that nobody has foreseen; the sentence names it. It may not come again."""


class PeerLost(RunError):
    """Another process of the job has gone or does not answer."""


class TimeoutReached(RunError):
    """A process has waited for longer than it may; the sentence says where and for what."""


class OutOfMemory(RunError):
    """The memory of the device or the machine does not suffice; a smaller micro-batch may."""


class Preempted(KetosError):
    """The run was asked to end by a signal and has saved its state; exit code 128 + signal."""

    def __init__(self, sentence: str, signal: int) -> None:
        super().__init__(sentence)
        self.exit_code = 128 + signal  # type: ignore[misc]


class PeerError(KetosError):
    """Another process of the job has failed and says why; this one ends with its exit code, in silence."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(f"Process {rank} of this job failed; its message says why.")
        self.exit_code = exit_code  # type: ignore[misc]
