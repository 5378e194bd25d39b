"""A smaller micro-batch where memory does not suffice, with the same global batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrib.config.experiment import read_experiment, run_to_resume
from distrib.config.sections import SECTIONS
from distrib.config.values import make_section
from launchers.plan import RESUMING, LaunchPlan


def smaller_batch(plan: LaunchPlan, now: Mapping[str, int]) -> dict[str, int] | None:
    """Half of the micro-batch, which is ``now`` or as the experiment says; None where it cannot be halved."""
    if plan.command not in RESUMING:
        return None
    options = _options(plan)
    lines = now.get("batch_size", options.batch_size)
    pixels = now.get("batch_pixels", options.batch_pixels)
    if lines > 1:
        return {"batch_size": (lines + 1) // 2}
    # One line at a time cannot be less; nor can a step cut by pixels, whose lines a checkpoint has fixed.
    return None if lines or pixels < 2 else {"batch_pixels": pixels // 2}


def batch_words(plan: LaunchPlan, batch: Mapping[str, int]) -> list[str]:
    """Options of the command for a micro-batch chosen anew; the global batch of a new run is held fast."""
    words = []
    if "batch_size" in batch:
        words += ["--batch-size", str(batch["batch_size"])]
        if run_to_resume(plan.run_dir) is None:
            options = _options(plan)
            lines = options.batch_size * options.accumulate_grad_batches * plan.processes
            words += ["--global-batch-size", str(options.global_batch_size or lines)]
    if "batch_pixels" in batch:
        words += ["--batch-pixels", str(batch["batch_pixels"])]
    return words


def _options(plan: LaunchPlan) -> Any:
    experiment = read_experiment(plan.experiment)
    return make_section(SECTIONS[plan.command], plan.command, experiment.sections.get(plan.command, {}))
