"""Lightning's counters for a run that goes on from a position of its stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl


def loops_at(
    trainer: pl.Trainer, position: Mapping[str, Any], *, optimizer_steps: int, steps: int, validate: bool
) -> dict[str, Any]:
    """The state of Lightning's loops where ``position`` (epoch, step in it, number of steps in all) is next.

    They follow from the position alone. Those that Lightning would keep depend on the hook from which a
    checkpoint was written, and some of them lead to another step than the one after it, or to none.

    ``validate``: the validation due at the position is still to come. ``steps`` of the epoch under way.
    """
    epoch, step, number = int(position["epoch"]), int(position["step"]), int(position["number"])
    ended = step == 0 and validate and number > 0
    if ended:
        # What follows an epoch's last step is part of it, however many steps it had; of an epoch of another
        # length Lightning would not know that it has ended.
        interval = trainer.val_check_interval
        epoch, step = epoch - 1, interval if isinstance(interval, int) else steps
    state = trainer.fit_loop.state_dict()
    for counts in state["epoch_progress"].values():
        counts |= {"ready": epoch + (step > 0), "started": epoch + (step > 0)}
        counts |= {"processed": epoch, "completed": epoch}
    batches = state["epoch_loop.batch_progress"]
    batches["total"] = dict.fromkeys(batches["total"], number)
    batches["current"] = dict.fromkeys(batches["current"], step)
    batches["is_last_batch"] = ended
    if validate:
        # As if it had been broken off in its first batch: Lightning then runs it before the next step.
        validation = state["epoch_loop.val_loop.batch_progress"]
        for part in ("total", "current"):
            validation[part] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    taken = state["epoch_loop.manual_optimization.optim_step_progress"]
    taken["total"] = dict.fromkeys(taken["total"], optimizer_steps)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = number
    return state


def validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a validation comes right after the step that is the ``batch_idx``-th of its epoch, from 0."""
    every = trainer.check_val_every_n_epoch
    turn = every is None or (trainer.current_epoch + 1) % every == 0
    interval = trainer.val_check_batch
    return turn and isinstance(interval, int) and (batch_idx + 1) % interval == 0


def steps_done(trainer: pl.Trainer) -> int:
    """Global steps done since the run began, those that changed nothing among them."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.completed)
