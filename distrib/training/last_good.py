"""The checkpoint to go on from when a run has come to learn nothing any more."""

from __future__ import annotations

from pathlib import Path

from distrib.errors import InputError
from distrib.runtime.checkpoints.contents import STATE_KEY
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import newest_first


def last_good(directory: Path) -> Path | None:
    """The newest whole checkpoint written right after a step that was learned from; None without one.

    Those written since are whole as well, but a run would go on from them to its next bad step.
    """
    for each in newest_first(directory):
        try:
            _, in_row = open_checkpoint(each.path).common[STATE_KEY]["counts"]["skipped"]
        except (InputError, KeyError, TypeError, ValueError):
            continue  # damaged, or none of ours: not one to recommend
        if not in_row:
            return each.path
    return None
