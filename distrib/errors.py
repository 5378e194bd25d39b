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


class RunError(KetosError):
    """A run that began and could not go on. Exit code 1."""


class PeerError(KetosError):
    """Another process of the job has failed and says why; this one ends with its exit code, in silence."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(f"Process {rank} of this job failed; its message says why.")
        self.exit_code = exit_code  # type: ignore[misc]
