"""Saying it where it is seen that the features have collapsed."""

from __future__ import annotations

import sys

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from distrib.training.learner import Learner
from distrib.training.pretraining.collapse import collapse_warning


class CollapseWarning(Callback):
    """Says, after the first validation that shows it, that the features have collapsed; rank zero has one."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr)
        self._said = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the scores."""
        assert isinstance(pl_module, Learner)
        sentence = collapse_warning(pl_module.scores["val_spread"], pl_module.scores["val_rank"])
        if sentence is not None and not self._said:
            self._console.print(sentence, highlight=False, soft_wrap=True)
        self._said = sentence is not None
