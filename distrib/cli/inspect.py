"""`ketos inspect`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from distrib.cli.display import progress
from distrib.cli.options import require_sources, section_command
from distrib.config.sections import Globals, Inspect
from distrib.errors import InputError, RunError
from distrib.wording import plural

if TYPE_CHECKING:
    from distrib.shards.dataset import Dataset
    from distrib.shards.inspection import Network
    from distrib.shards.storage import ShardStorage
    from distrib.shards.verification import Damage


@section_command("inspect")
def inspect_command(globals_: Globals, options: Inspect) -> None:
    """Print what data sets hold.

    DATASET is a folder of shards, an .arrow or .tar file, a dataset.json, a glob or an fsspec address.
    --verify reads everything and ends with exit code 1 where something is damaged.
    """
    require_sources(options.datasets, remedy="No data set given: name files or folders.")
    from distrib.cli.inspection import facts_json, render_alphabet, render_damages, render_facts
    from distrib.shards.addresses import expand_datasets
    from distrib.shards.dataset import open_dataset
    from distrib.shards.inspection import Inspector
    from distrib.shards.storage import ShardStorage

    network = _network(options)
    storage = ShardStorage(None)
    datasets = [open_dataset(address, storage) for address in expand_datasets(options.datasets, ())]
    inspector = Inspector(network)
    for dataset in datasets:
        inspector.add(dataset)
    damages = _verify(datasets, storage, globals_.num_workers) if options.verify else None
    total = inspector.total()
    if options.json:
        document = {
            "datasets": [facts_json(facts) for facts in inspector.facts],
            "all": facts_json(total),
            "damaged": None if damages is None else [vars(damage) for damage in damages],
        }
        click.echo(json.dumps(document, ensure_ascii=False, indent=1))
    else:
        parts = [render_facts(facts) for facts in inspector.facts]
        if len(parts) > 1:
            parts.append(render_facts(total))
        parts.append(render_alphabet(total, inspector.facts))
        if damages is not None:
            parts.append(render_damages(damages))
        click.echo("\n\n".join(parts))
    if damages:
        lines = sum(damage.line is not None for damage in damages)
        raise RunError(
            f"{plural(lines, 'damaged line')} and {plural(len(damages) - lines, 'fault')} of whole shards "
            "were found; copy or compile the data again."
        )


def _network(options: Inspect) -> Network:
    """What --spec asks of lines. Raises InputError where it is no network for lines."""
    from distrib.ground_truth.network_input import NetworkInput
    from distrib.model.grammar import parse_spec
    from distrib.model.shapes import input_shape, output_shape, output_width
    from distrib.shards.inspection import Network

    spec = parse_spec(options.spec)
    shape = input_shape(spec)
    if spec.input.channels not in (1, 3):
        raise InputError(
            f"--spec {options.spec}: the input has {spec.input.channels} channels, but a line image has 1 or "
            "3; give one of these as the last number of the input block."
        )
    height = output_shape(spec.body, shape).height
    if height != 1:
        raise InputError(
            f"--spec {options.spec}: its output is not one pixel high; fold the height into the channels "
            "with a block `S1(1x0)1,3`."
        )
    return Network(
        network_input=NetworkInput(
            height=spec.input.height,
            width=spec.input.width,
            channels=spec.input.channels,
            pad=options.padding,
            centerline=spec.input.channels == 1,
        ),
        output_width=partial(output_width, spec.body, shape),
    )


def _verify(datasets: Sequence[Dataset], storage: ShardStorage, workers: int) -> list[Damage]:
    """Read all data sets whole; what is damaged, in order."""
    from distrib.shards.compiling.ordered import WorkerDied, map_ordered
    from distrib.shards.verification import verify, verify_index, verify_tasks

    tasks = [task for dataset in datasets for task in verify_tasks(dataset, storage)]
    lines, done = sum(len(dataset.index) for dataset in datasets), 0
    damages = [damage for dataset in datasets for damage in verify_index(dataset, storage)]
    try:
        with progress("Verifying") as show:
            for task, found in zip(tasks, map_ordered(verify, tasks, workers=workers), strict=True):
                damages.extend(found)
                done += task.last - task.first
                show(done, lines, "lines")
    except WorkerDied as error:
        raise RunError("A process reading data was killed; use fewer --workers.") from error
    return damages
