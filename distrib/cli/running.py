"""A run of `ketos train` or `ketos pretrain` as each of its processes sees it."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distrib.config.experiment import STORED_NAME, dump_experiment, run_directory_of, stored_options
from distrib.config.learning import Learning, Pretrain, Train
from distrib.config.sections import Globals
from distrib.errors import InputError
from distrib.files import written_whole
from distrib.wording import plural

if TYPE_CHECKING:
    from distrib.runtime.directory.run_directory import RunDirectory
    from distrib.runtime.preflight.stages import Preflight
    from distrib.runtime.processes import Processes
    from distrib.stream.lines import LineCollection
    from distrib.training.setup import Overview, PreparedRun


def run_learning(globals_: Globals, options: Train | Pretrain) -> None:
    """Join the other processes of the job, and run what the options say."""
    from distrib.runtime.processes import joined
    from distrib.runtime.strategies.choose import is_sharded
    from distrib.runtime.topology import topology_of

    # What one node lacks must end all processes, so they meet before anything is checked.
    group_of_one = is_sharded(options.strategy)
    with joined(
        topology_of(os.environ),
        device=globals_.device,
        group_of_one=group_of_one,
        timeout=globals_.rendezvous_timeout,
        stall_timeout=globals_.stall_timeout,
        environ=os.environ,
    ) as processes:
        _claim_and_run(globals_, options, processes)


def _claim_and_run(globals_: Globals, options: Train | Pretrain, processes: Processes) -> None:
    """The run as each of its processes sees it; rank zero holds the run directory and does the talking."""
    from distrib.runtime.devices import use_device
    from distrib.runtime.directory.run_directory import claim
    from distrib.runtime.preflight.stages import Preflight
    from distrib.training.ignored_options import ignored_options
    from distrib.training.loggers import check_logger
    from distrib.training.options import check_options

    preflight = Preflight(processes, warn=_note)
    preflight.machines(deepspeed=options.strategy.startswith("deepspeed"), workers=globals_.num_workers)
    _refuse_unlike_options(options, processes)
    processes.agree(lambda: check_options(options, globals_))
    if processes.topology.first:
        for sentence in ignored_options(options):
            _note(sentence)
    processes.on_first(lambda: check_logger(options, options.checkpoint_path))
    preflight.devices(globals_.device)
    processes.agree(lambda: use_device(globals_.device, processes.topology))
    with processes.first_holds(
        lambda: claim(
            options.checkpoint_path,
            resuming=_goes_on_in_place(options),
            environ=os.environ,
            steal=options.steal_lease,
            report=_note,
        )
    ) as claimed:
        preflight.run_directory(options.checkpoint_path)
        _run(globals_, options, processes, claimed, preflight)


def _run(
    globals_: Globals,
    options: Train | Pretrain,
    processes: Processes,
    claimed: RunDirectory | None,
    preflight: Preflight,
) -> None:
    from distrib.runtime.directory.events import EVENTS, EventLog

    events = None if claimed is None else EventLog(claimed.path / EVENTS)

    def tell(kind: str, facts: Mapping[str, Any]) -> None:
        if events is not None:
            events.append(kind, **facts)

    tell("start", {"processes": processes.topology.world_size, "strategy": options.strategy})
    from distrib.cli.preflighting import needs_of
    from distrib.runtime.checkpoints.contents import checkpoint_to_resume
    from distrib.runtime.checkpoints.record import go_on_from
    from distrib.runtime.watchdog import Watch, watched
    from distrib.training.bad_lines import BAD_LINES
    from distrib.training.run import fit
    from distrib.training.setup import prepare, refuse_unlike_processes

    tell("import_done", {})
    resume = options.resume
    resume_from = None
    if resume is not None:
        resume_from = processes.on_first(lambda: checkpoint_to_resume(resume, report=_note))
        if claimed is not None and _goes_on_in_place(options):
            go_on_from(resume_from)
        tell("resume", {"checkpoint": str(resume_from)})
    collections = _collections(globals_, options, processes)
    run = processes.agree(
        lambda: prepare(options, globals_, *collections, processes=processes, resume_from=resume_from)
    )
    refuse_unlike_processes(run)
    preflight.step(run.model.network, options.checkpoint_path, needs_of(run), device=globals_.device)
    tell("preflight", preflight.facts)
    _describe(processes, options, claimed)
    if claimed is not None:
        claimed.begun()
        _print_overview(run.overview, processes.topology.world_size)
        click.echo(preflight.summary)
        _draw_rates(run)
        _store(globals_, run.options)
    advice = options.way_on(options.checkpoint_path)
    watch = Watch(limit=globals_.stall_timeout, advice=advice)
    with watched(processes, options.checkpoint_path, watch, environ=os.environ, on_event=tell):
        outcome = fit(run, claimed=claimed, on_event=tell)
    if claimed is None:
        return
    if outcome.bad_lines:
        click.echo(
            f"{plural(len(outcome.bad_lines), 'line')} could not be used, listed with reasons in "
            f"{options.checkpoint_path / BAD_LINES}",
            err=True,
        )
    click.echo(f"best model: {outcome.score}, {outcome.weights}")


def _refuse_unlike_options(options: Train | Pretrain, processes: Processes) -> None:
    """Each process has found for itself what to resume and with which options: all must have the same."""
    # Folders on the machines' own disks may differ.
    found = processes.gather(repr(dataclasses.replace(options, cache_dir=None)))
    unlike = [rank for rank, each in enumerate(found) if each != found[0]]
    if unlike:
        processes.stop(
            InputError(
                f"Process {unlike[0]} was started with other options than process 0, or finds another run to "
                "go on with; see that all have the same command line and reach the same files."
            )
        )


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)


def _describe(processes: Processes, options: Train | Pretrain, claimed: RunDirectory | None) -> None:
    """Keep in the run directory what the run runs on, a description of each node."""
    from distrib.runtime.directory.run_environment import describe_environment, write_environment

    topology = processes.topology
    data: list[str | Path] = [*options.ground_truth, *options.training_data, *options.evaluation_data]
    mine = None
    if topology.local_rank == 0:
        mine = describe_environment(topology, data=data, environ=os.environ, command=sys.argv)
    nodes = [node for node in processes.gather(mine) if node is not None]
    if claimed is not None:
        write_environment(claimed.path, nodes)


def _goes_on_in_place(options: Train | Pretrain) -> bool:
    """Whether the run directory is that of the checkpoint to resume."""
    if options.resume is None:
        return False
    return options.checkpoint_path.resolve() == run_directory_of(options.resume).resolve()


def _collections(
    globals_: Globals, options: Train | Pretrain, processes: Processes
) -> tuple[LineCollection, LineCollection | None]:
    from distrib.cli.compiling import open_data, open_storage
    from distrib.training.models import input_height

    storage = open_storage(options.cache_dir, options.cache_size)
    height = 0 if options.format_type == "binary" else input_height(options)

    def collection(arguments: tuple[str, ...], manifests: tuple[Path, ...], name: str) -> LineCollection:
        return open_data(
            arguments=arguments,
            manifests=manifests,
            format_type=options.format_type,
            linetype=options.linetype,
            legacy_polygons=options.legacy_polygons,
            workers=globals_.num_workers,
            compiled=options.checkpoint_path / "data" / f"{name}.arrow",
            storage=storage,
            height=height,
            reuse=options.resume is not None,
            again=options.resume_anyway,
            textless=isinstance(options, Pretrain),
            processes=processes,
        )

    training = collection(options.ground_truth, options.training_data, "training")
    validation = None
    if options.evaluation_data:
        validation = collection((), options.evaluation_data, "validation")
    return training, validation


def _draw_rates(run: PreparedRun) -> None:
    """What becomes of the learning rate: said, and drawn in the run directory."""
    from distrib.training.learning_rate_curve import curve, curve_svg, epochs_shown, rate_summary
    from distrib.training.schedules import base_rate

    options, overview = run.options, run.overview
    base = base_rate(options, global_lines=overview.global_lines)
    summary = rate_summary(options, base=base, warmup_unit=options.warmup_unit)
    click.echo(summary)
    points = curve(
        options,
        steps=overview.steps,
        epochs=epochs_shown(options),
        base=base,
        warmup_unit=options.warmup_unit,
        lines=overview.training_lines,
    )
    with written_whole(options.checkpoint_path / "learning_rate.svg") as file:
        file.write(curve_svg(points, title=summary).encode())


def _store(globals_: Globals, options: Learning) -> None:
    """Keep the resolved experiment in the run directory, so that a resume needs no other option."""
    with written_whole(options.checkpoint_path / STORED_NAME) as file:
        file.write(dump_experiment(globals_, options.command, stored_options(options)).encode())


def _print_overview(overview: Overview, world_size: int) -> None:
    """What is trained on, before the first step."""
    click.echo(
        f"training on {plural(overview.training_lines, 'line')}, "
        f"validating on {plural(overview.validation_lines, 'line')}, {overview.origin}"
    )
    for note in overview.notes:
        click.echo(note)
    click.echo(f"network {overview.spec}, {plural(overview.parameters, 'parameter')}")
    step = f"{overview.global_lines} lines" if overview.global_lines else "lines by pixels"
    click.echo(
        f"{plural(world_size, 'process', 'processes')}, {step} a step, {overview.steps:,} steps an epoch, "
        f"{overview.fill:.0%} of what is computed is line, the rest padding"
    )
    for problem in overview.problems:
        click.echo(problem, err=True)
