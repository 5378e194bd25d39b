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
    if lines:  # pixels only bound a micro-batch of so many lines
        halved = {"batch_pixels": pixels // 2} if pixels else {}
        return {"batch_size": (lines + 1) // 2, **halved} if lines > 1 else None
    # Steps are cut by pixels: twice as many of half the size are the same only where they can be halved.
    return {"batch_pixels": pixels // 2} if pixels and pixels % 2 == 0 else None


def batch_words(plan: LaunchPlan, batch: Mapping[str, int]) -> list[str]:
    """Options of the command for a micro-batch chosen anew; the global batch of a new run is held fast."""
    if not batch:
        return []
    options = _options(plan)
    words = []
    if "batch_size" in batch:
        words += ["--batch-size", str(batch["batch_size"])]
    if "batch_pixels" in batch:
        words += ["--batch-pixels", str(batch["batch_pixels"])]
    if run_to_resume(plan.run_dir) is not None:
        return words  # its checkpoint says what a step is
    if "batch_size" in batch:
        lines = options.batch_size * options.accumulate_grad_batches * plan.processes
        return [*words, "--global-batch-size", str(options.global_batch_size or lines)]
    times = options.accumulate_grad_batches * (options.batch_pixels // batch["batch_pixels"])
    return [*words, "--accumulate-grad-batches", str(times)]


def _options(plan: LaunchPlan) -> Any:
    experiment = read_experiment(plan.experiment)
    return make_section(SECTIONS[plan.command], plan.command, experiment.sections.get(plan.command, {}))
