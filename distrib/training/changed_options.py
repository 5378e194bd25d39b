"""Options of the optimizer that were given anew to a run that goes on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.config.learning import Learning
from distrib.errors import InputError

_SETTINGS = {"momentum": "momentum", "weight_decay": "weight_decay"}
"""Options, and what torch's optimizers call them."""


def refuse_changed_model(options: Learning, then: Learning) -> None:
    """Raise InputError for options that a checkpoint's network and optimizer cannot follow."""
    for name in ("spec", "optimizer"):
        now, before = getattr(options, name), getattr(then, name)
        if now != before:
            raise InputError(
                f"--{name} {now}: the run was begun with {before}, which its checkpoint holds; leave it "
                "out, or start a new run from its weights with --load."
            )
    for name in ("freeze_backbone", "shortcut"):
        now, before = getattr(options, name, 0), getattr(then, name, 0)
        if now != before and (name == "freeze_backbone" or not (now and before)):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{flag} {now:g}: the run was begun with {before:g}, and its checkpoint holds what goes with "
                "that; leave it out, or start a new run from its weights with --load."
            )


class ChangedOptions(Callback):
    """Where an option differs from what the run had ``then``, it counts from now on; else the checkpoint's
    settings do, which a schedule may have moved."""

    def __init__(self, options: Learning, then: Learning) -> None:
        self._changed: dict[str, Any] = {
            setting: getattr(options, name)
            for name, setting in _SETTINGS.items()
            if getattr(options, name) != getattr(then, name)
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The checkpoint has been loaded."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update({name: value for name, value in self._changed.items() if name in group})
                if "betas" in group and "momentum" in self._changed:
                    group["betas"] = (self._changed["momentum"], *group["betas"][1:])
