"""What a prepared run will ask of its nodes, in the terms of the preflight."""

from __future__ import annotations

from distrib.config.learning import Learning, Train
from distrib.runtime.devices import torch_device
from distrib.runtime.preflight.limits import HandedOver
from distrib.runtime.preflight.stages import Needs
from distrib.stream.loader import PREFETCH
from distrib.stream.widths import input_widths
from distrib.training.models import network_input_of
from distrib.training.setup import PreparedRun


def needs_of(run: PreparedRun) -> Needs:
    """Checkpoints, exchange and shared memory of a run."""
    options = run.options
    return Needs(
        strategy=options.strategy,
        optimizer_values=_optimizer_values(options),
        kept=options.keep_best + options.keep_last,
        handed_over=_handed_over(run),
    )


def _optimizer_values(options: Learning) -> int:
    """Values that the optimizer keeps for each parameter."""
    momentum = int(options.momentum > 0)
    averages = int(isinstance(options, Train) and options.ema > 0)
    return averages + {"SGD": momentum, "RMSprop": 1 + momentum}.get(options.optimizer, 2)


def _handed_over(run: PreparedRun) -> HandedOver | None:
    """What reader processes hold ready in shared memory; None without any, or where lines have any height."""
    workers, options = run.globals_.num_workers, run.options
    network_input = network_input_of(run.model, padding=options.padding)
    if not workers or not network_input.height:
        return None
    columns = input_widths(run.sets.training, network_input).columns[run.lines]
    column = network_input.height * network_input.channels
    widest = column * int(columns.max())
    average = column * float(columns.mean()) / max(run.overview.fill, 0.01)
    lines = options.batch_size or run.lines.size
    least, most = average * min(lines, run.lines.size), widest * lines
    if options.batch_pixels:
        pixels = options.batch_pixels * network_input.channels
        least, most = min(least, pixels), min(most, max(pixels, widest))
    # For a GPU they are copied out at once. An epoch may hold fewer than would be read ahead.
    ahead = workers * (1 if torch_device(run.globals_.device).startswith("cuda") else PREFETCH)
    ahead = min(ahead, max(1, run.lines.size // (lines * run.processes.topology.world_size)))
    return HandedOver(workers=workers, least=int(least) * ahead, most=int(most) * workers * PREFETCH * 2)
