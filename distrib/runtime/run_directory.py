"""The directory of a run: one run a directory, and nothing left in it by a run that never began."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distrib.errors import InputError, KetosError
from distrib.runtime.checkpoints import saved_checkpoints


@contextmanager
def claimed_directory(directory: Path, *, resuming: bool) -> Iterator[None]:
    """Make the run directory; where the input turns out unusable, take away what came into it.

    Raises InputError where it cannot be made, or holds another run's checkpoints.
    """
    if not resuming and saved_checkpoints(directory):
        raise InputError(
            f"{directory}: holds the checkpoints of another run; continue it with `--resume {directory}`, or "
            "give another directory with -o."
        )
    missing = next((path for path in reversed([directory, *directory.parents]) if not path.exists()), None)
    before = set(directory.iterdir()) if directory.is_dir() else set()
    saved = set(saved_checkpoints(directory))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory}: cannot be made a run directory ({error.strerror}); choose another with -o."
        ) from None
    try:
        yield
    except KetosError as error:
        if error.exit_code != InputError.exit_code:
            raise
        # Whatever has been saved since is work done, and stays however the run ended.
        if set(saved_checkpoints(directory)) - saved:
            raise
        if missing is not None:
            shutil.rmtree(missing, ignore_errors=True)
        else:
            _remove(set(directory.iterdir()) - before)
        raise


def _remove(paths: set[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
