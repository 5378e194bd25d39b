"""Lightning's way to disk for checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from distrib.errors import RunError
from distrib.files import written_whole
from distrib.runtime.checkpoints import load_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints written aside, flushed, renamed; read without executing pickled code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``. Raises RunError where the disk does not take it."""
        target = Path(path)
        try:
            with written_whole(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise RunError(f"{target}: the checkpoint could not be written ({error}).") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint of ours."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint file."""
        Path(path).unlink(missing_ok=True)
