"""The directory of a run: one run a directory, and nothing left in it by a run that never began."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from distrib.errors import InputError, KetosError
from distrib.runtime.directory.lease import INTERVAL, Lease

CHECKPOINTS: Final = ("checkpoint_*.ckpt", "step_*.ckpt", "last.ckpt")
"""Names of files, folders and links by which a directory is known to hold a run's work."""


class RunDirectory:
    """A directory that this process alone may write, at rank zero of a run."""

    def __init__(self, path: Path, lease: Lease) -> None:
        self.path = path
        self.lease = lease
        self.has_begun = False

    def begun(self) -> None:
        """The input is usable and training starts: from now on nothing is removed, however the run ends."""
        self.has_begun = True

    def check(self) -> None:
        """Called right before a checkpoint takes its name. Raises RunError where another has taken over."""
        self.lease.check()


def holds_checkpoints(directory: Path) -> bool:
    """Whether a run has left checkpoints there, be it a link that leads nowhere."""
    return bool(_checkpoints(directory))


@contextmanager
def claim(
    directory: Path,
    *,
    resuming: bool,
    environ: Mapping[str, str],
    steal: bool = False,
    interval: float = INTERVAL,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[RunDirectory]:
    """Make the run directory and hold its lease as long as the block lasts, which is the whole command.

    Until ``begun`` is called an InputError means that the input has turned out unusable: then what came into
    the directory is taken away again, unless there is a checkpoint among it. ``resuming`` says that its
    checkpoints are this run's own. The other arguments are those of ``Lease.acquire``.

    Raises InputError where it cannot be made, is in use, or holds another run's checkpoints.
    """
    made = _make(directory)
    try:
        with Lease.acquire(
            directory, steal=steal, environ=environ, interval=interval, report=report
        ) as lease:
            yield from _held(RunDirectory(directory, lease), resuming=resuming)
    finally:
        # Only those that have stayed, or have become, empty go.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _held(run: RunDirectory, *, resuming: bool) -> Iterator[RunDirectory]:
    saved = _checkpoints(run.path)
    if saved and not resuming:
        raise InputError(
            f"{run.path}: holds the checkpoints of another run; continue it with `--resume {run.path}`, or "
            "give another directory with -o."
        )
    before = set(run.path.iterdir())
    try:
        yield run
    except KetosError as error:
        unusable = error.exit_code == InputError.exit_code and not run.has_begun
        # Whatever has been saved since is work done, and stays however the run ended.
        if unusable and not run.lease.lost and not _checkpoints(run.path) - saved:
            _remove(set(run.path.iterdir()) - before)
        raise


def _checkpoints(directory: Path) -> set[str]:
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError:
        return set()
    return {name for name in names if any(fnmatch(name, pattern) for pattern in CHECKPOINTS)}


def _make(directory: Path) -> list[Path]:
    """Make a directory and its parents; those that were not there, the innermost first."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be made a run directory ({error.strerror}); choose another with -o."
        ) from None
    return made


def _remove(paths: set[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
