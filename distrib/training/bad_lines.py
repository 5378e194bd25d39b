"""The file of a run that names every line it could not use, and why."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.files import written_whole
from distrib.training.preparation import LineSets
from distrib.training.recognition import RecognitionModule

BAD_LINES = "bad_lines.jsonl"


class BadLinesReport(Callback):
    """Writes ``bad_lines.jsonl`` of the run directory: one object a line with ``set`` (training or
    validation), ``line`` (its number), ``source``, ``id`` and ``reason``; each line once."""

    def __init__(self, directory: Path, sets: LineSets) -> None:
        self._path = directory / BAD_LINES
        self._sets = sets
        self._written = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The lines of all processes are known now."""
        self._write(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """What this process knows is better than nothing where too many bad lines ended the run."""
        self._write(pl_module)

    def _write(self, module: pl.LightningModule) -> None:
        assert isinstance(module, RecognitionModule)
        if len(module.bad_lines) == self._written:
            return
        with written_whole(self._path) as file:
            for (where, line), reason in sorted(module.bad_lines.items()):
                lines = self._sets.training if where == "training" else self._sets.validation
                source, line_id = lines.place(line)
                row = {"set": where, "line": line, "source": source, "id": line_id, "reason": reason}
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        self._written = len(module.bad_lines)
