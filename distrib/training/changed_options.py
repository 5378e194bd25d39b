"""Options that a run which goes on cannot have other than it began with."""

from __future__ import annotations

from distrib.config.learning import Learning
from distrib.errors import InputError


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
