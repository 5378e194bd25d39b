"""The file of a run that names every line it could not use, and why."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.files import written_whole
from distrib.stream.lines import LineCollection
from distrib.training.learner import Learner
from distrib.training.preparation import LineSets
from distrib.training.unusable_lines import BadLines

BAD_LINES = "bad_lines.jsonl"


class BadLinesReport(Callback):
    """Writes ``bad_lines.jsonl`` of the run directory: one object a line with ``set`` (training or
    validation), ``line`` (its number), ``source``, ``id`` and ``reason``; each line once. What stands in it
    stays there when the run is ``resumed``."""

    def __init__(self, directory: Path, sets: LineSets, *, resumed: bool) -> None:
        self._path = directory / BAD_LINES
        self._sets = sets
        self._resumed = resumed
        self._written = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with what is known of the run; what another left behind is no longer true."""
        assert isinstance(pl_module, Learner)
        if self._resumed:
            pl_module.unusable.known |= self._known()
            self._written = len(pl_module.unusable.known)
        else:
            self._path.unlink(missing_ok=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The lines of all processes are known now."""
        self._write(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """What this process knows is better than nothing where too many bad lines ended the run."""
        with suppress(OSError):
            self._write(pl_module)

    def _write(self, module: pl.LightningModule) -> None:
        assert isinstance(module, Learner)
        bad_lines = module.unusable.known
        if len(bad_lines) == self._written:
            return
        with written_whole(self._path) as file:
            for (where, line), reason in sorted(bad_lines.items()):
                source, line_id = self._lines(where).place(line)
                row = {"set": where, "line": line, "source": source, "id": line_id, "reason": reason}
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
        self._written = len(bad_lines)

    def _lines(self, where: Literal["training", "validation"]) -> LineCollection:
        return self._sets.training if where == "training" else self._sets.validation

    def _known(self) -> BadLines:
        """The lines in the file that are still the same lines: data may have changed before a resume."""
        found: BadLines = {}
        try:
            with self._path.open(encoding="utf-8") as file:
                for row in map(json.loads, file):
                    where, line = row["set"], row["line"]
                    lines = self._lines(where)
                    if line < len(lines) and lines.place(line) == (row["source"], row["id"]):
                        found[where, line] = row["reason"]
        except (OSError, ValueError, LookupError, TypeError):
            return {}  # nobody's work depends on it, and it will be written anew
        return found
