"""What checkpoints of a run are called, and how one is told from other files."""

from __future__ import annotations

import re
from pathlib import Path

LAST = "last.ckpt"
"""The newest checkpoint under a name that stays: a link to it."""

ABORT = "checkpoint_abort.ckpt"
"""What was saved when a run ended in an error."""

CONTENTS = "checkpoint.json"
"""The file of a folder checkpoint that names all others; a folder without it is none."""

# An accuracy is below 0 where more is inserted than the lines hold.
_VALIDATION = re.compile(r"checkpoint_(\d+)-(-?\d+\.\d+)\.ckpt")
_STEP = re.compile(r"step_(\d+)\.ckpt")


def checkpoint_name(epoch: int, score: float) -> str:
    """``checkpoint_<epoch>-<score>.ckpt``, after a validation; epochs count from 0 as kraken's do."""
    return f"checkpoint_{epoch:02d}-{score:.4f}.ckpt"


def step_name(step: int) -> str:
    """``step_<step>.ckpt``, between validations; ``step`` counts the global steps done."""
    return f"step_{step:08d}.ckpt"


def is_run_name(name: str) -> bool:
    """Whether a run in good order gives this name to a checkpoint."""
    return _VALIDATION.fullmatch(name) is not None or _STEP.fullmatch(name) is not None


def is_checkpoint(path: Path) -> bool:
    """True for files in torch's zip container, which weights files never are, and for folder checkpoints.

    Raises OSError where the path cannot be read.
    """
    if path.is_dir():
        return (path / CONTENTS).is_file()
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
