"""`ketos launch`: the same command here, on SLURM, on Ray; and how it stands there."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distrib.cli.options import section_options
from distrib.config.launching import LocalLaunch, RayLaunch, SlurmLaunch, Target
from distrib.errors import InputError, KetosError

if TYPE_CHECKING:
    from distrib.cli.launching import PlannedRun
    from distrib.config.launching import Launch
    from launchers.plan import LaunchPlan
    from launchers.status import Status


@click.group("launch", short_help="Run a command as several processes, here, on SLURM or on Ray.")
def launch_command() -> None:
    """Run a command as several processes, here, on SLURM or on Ray, and start it again when it must be.

    \b
    ketos --config experiment.yml launch local --procs-per-node 2 -- train -f binary -o run pages.arrow
    ketos --config experiment.yml launch slurm --nodes 2 --gpus-per-node 4 -- train -f binary -o run shards
    ray job submit -- ketos --config experiment.yml launch ray --nodes 2 -- train -f binary -o run shards
    ketos launch status run
    """


_WORDS = click.Argument(["words"], metavar="COMMAND...", nargs=-1, type=click.UNPROCESSED)


def _target(target: Target, section: type, summary: str) -> click.Command:
    @section_options(section)
    @click.pass_context
    def run(context: click.Context, /, words: tuple[str, ...], **_: Any) -> None:
        context.exit(_launch(context, target, words))

    command = click.command(target, short_help=summary, context_settings={"allow_interspersed_args": False})(
        run
    )
    command.help = f"{summary}\n\nCOMMAND is compile, train, test or pretrain with its options."
    command.params.append(_WORDS)
    return command


launch_command.add_command(_target("local", LocalLaunch, "Run a command as processes of this machine."))
launch_command.add_command(_target("slurm", SlurmLaunch, "Run a command as a job of SLURM."))
launch_command.add_command(_target("ray", RayLaunch, "Run a command on a Ray cluster."))


def _launch(context: click.Context, target: Target, words: tuple[str, ...]) -> int:
    from distrib.cli.launching import launch_options, parsed_command, plans_of

    options = launch_options(context, target)
    if isinstance(options, LocalLaunch) and options.debug:
        return _debug(context, words)
    directory, runs = plans_of(options, target, parsed_command(context, words))
    if options.dry_run:
        click.echo(_dry_run(target, runs), nl=False)
        return 0
    return _runner(target)(directory, runs, options)


def _debug(context: click.Context, words: tuple[str, ...]) -> int:
    """The command in this very process, for a debugger to look into."""
    import torch

    from distrib.cli.launching import parsed_command

    parsed_command(context, words)
    root = context.find_root()
    given = [word for word in words if word != "ketos"]
    config = root.params.get("config")
    top = ["--config", str(config)] if config is not None else []
    for name in ("verbose", "device", "precision", "seed"):
        value = root.params.get(name)
        if name == "verbose":
            top += ["-v"] * int(value or 0)
        elif value is not None and root.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            top += [f"--{name}", str(value)]
    with torch.autograd.detect_anomaly(check_nan=True):
        root.command.main([*top, "--workers", "0", *given], prog_name="ketos", standalone_mode=False)
    return 0


def _dry_run(target: Target, runs: list[PlannedRun]) -> str:
    from launchers.targets import executor_of

    texts = [executor_of(target).dry_run(each.plan) for each in runs]
    return "\n".join([*texts, f"# {runs[0].plan.experiment}", runs[0].experiment])


def _runner(target: Target) -> Callable[[Path | None, list[PlannedRun], Any], int]:
    return {"local": _run_locally, "slurm": _run_on_slurm, "ray": _run_on_ray}[target]


def _begin(planned: PlannedRun) -> None:
    """Put a launch on record; from then on agents may come. Raises InputError where one is at work."""
    from distrib.runtime.directory.events import EVENTS, EventLog
    from launchers.begin import refuse_running
    from launchers.places import cancel_file
    from launchers.plan import write_plan

    plan = planned.plan
    refuse_running(plan)
    planned.keep()
    write_plan(plan)
    cancel_file(plan.run_dir).unlink(missing_ok=True)
    EventLog(plan.run_dir / EVENTS).append(
        "launch", target=plan.target, command=plan.command, nodes=plan.options.nodes, processes=plan.processes
    )


@contextmanager
def _kept(directory: Path | None, runs: list[PlannedRun]) -> Iterator[None]:
    """Put launches on record for the block that submits them; what fails there leaves no trace of them, but
    in run directories that were there before, where it stands on record."""
    from distrib.cli.launching import keep_sweep
    from launchers.begin import forget

    new = [each.plan for each in runs if not each.plan.run_dir.exists()]
    sweep_is_new = directory is not None and not directory.exists()
    try:
        for each in runs:
            _begin(each)
        if directory is not None:
            keep_sweep(directory, runs)
        yield
    except KetosError as error:
        for each in runs:
            forget(each.plan, error, new=each.plan in new)
        if sweep_is_new and directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _run_locally(directory: Path | None, runs: list[PlannedRun], options: Launch) -> int:
    from launchers.local.executor import check, submit

    check(runs[0].plan)
    if options.wait is False:
        if directory is not None:
            raise InputError("--detach: a local sweep makes one run after the other; run it without.")
        with _kept(directory, runs):
            process = submit(runs[0].plan)
        _say_where(runs[0].plan, f"process {process}")
        return 0
    with _kept(directory, runs):
        pass
    return max(_in_foreground(each.plan) for each in runs)


def _run_on_slurm(directory: Path | None, runs: list[PlannedRun], options: Launch) -> int:
    from launchers.slurm.environment import inside_allocation
    from launchers.slurm.executor import check, submit, submit_sweep
    from launchers.slurm.job import restarted

    plans = [each.plan for each in runs]
    if inside_allocation(os.environ):
        # A job that was queued again goes on with the launch that it was.
        if not all(restarted(plan.run_dir, os.environ) for plan in plans):
            with _kept(directory, runs):
                pass
        return max(map(_in_foreground, plans))
    check(plans[0])
    with _kept(directory, runs):
        job = submit(plans[0]) if directory is None else submit_sweep(plans, directory)
    _say_where(plans[0], f"job {job.id}", directory)
    return _wait(directory or plans[0].run_dir) if options.wait else 0


def _run_on_ray(directory: Path | None, runs: list[PlannedRun], options: Launch) -> int:
    from launchers.ray.executor import check, submit

    plans = [each.plan for each in runs]
    check(plans[0])
    if options.wait is False:
        with _kept(directory, runs):
            jobs = [submit(plan) for plan in plans]
        for plan, job in zip(plans, jobs, strict=True):
            _say_where(plan, f"job {job.id}")
        return 0
    with _kept(directory, runs):
        pass
    return max(map(_in_foreground, plans))


def _in_foreground(plan: LaunchPlan) -> int:
    """Run an agent here, with what rank zero prints shown as it comes."""
    from launchers.following import following
    from launchers.targets import executor_of

    with following(plan):
        return executor_of(plan.target).run_here(plan, echo=_tell, followed=True)


def _tell(sentence: str) -> None:
    click.echo(sentence, err=True)


def _say_where(plan: LaunchPlan, what: str, directory: Path | None = None) -> None:
    place = directory or plan.run_dir
    click.echo(
        f"{plan.name}: {what}; see `ketos launch status {place}`, `ketos launch logs --follow {place}`"
    )


@launch_command.command("status", short_help="How a launched run stands.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status_command(run_dir: Path, as_json: bool) -> None:
    """How a launched run, or a sweep, stands: its state, attempts, and newest figures."""
    from distrib.cli.launch_display import print_json, print_status

    found = [(plan, _status(plan)) for plan in _plans(run_dir)]
    if as_json:
        print_json(found)
        return
    for plan, status in found:
        print_status(plan, status)


@launch_command.command("logs", short_help="What the processes of a launched run print.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(0), default=None, help="Of this process only.")
@click.option("--attempt", type=click.IntRange(1), default=None, help="Of this attempt; by default the last.")
@click.option("--follow", is_flag=True, help="Go on until the run has ended.")
def logs_command(run_dir: Path, rank: int | None, attempt: int | None, follow: bool) -> None:
    """What the processes of a launched run have printed."""
    from launchers.following import follow_logs, print_logs

    for plan in _plans(run_dir):
        if follow:
            follow_logs(plan, rank=rank or 0, ended=partial(_has_ended, plan))
        else:
            print_logs(plan, attempt=attempt, rank=rank)


@launch_command.command("cancel", short_help="End a launched run, which saves first.")
@click.argument("run_dir", type=click.Path(path_type=Path))
def cancel_command(run_dir: Path) -> None:
    """End a launched run, on whatever machine it is: its processes save, and nothing is started again."""
    from launchers.begin import ask_to_end, job_of

    for plan in _plans(run_dir):
        status = _status(plan)
        if status.state.ended:
            click.echo(f"{plan.run_dir}: has ended already ({status.state.name})")
            continue
        ask_to_end(plan)
        job = job_of(plan)
        if job is not None:
            job.cancel()
        click.echo(f"{plan.run_dir}: asked to end; `ketos launch wait {plan.run_dir}` waits for it")


@launch_command.command("wait", short_help="Wait for the end of a launched run.")
@click.argument("run_dir", type=click.Path(path_type=Path))
def wait_command(run_dir: Path) -> None:
    """Wait for the end of a launched run; the exit code is that of the run."""
    sys.exit(_wait(run_dir))


def _wait(run_dir: Path) -> int:
    from distrib.cli.launch_display import print_status

    code = 0
    for plan in _plans(run_dir):
        status = _status(plan)
        while not status.state.ended:
            time.sleep(1.0)
            status = _status(plan)
        print_status(plan, status)
        code = max(code, status.exit_code)
    return code


def _plans(run_dir: Path) -> list[LaunchPlan]:
    from distrib.cli.launching import sweep_runs
    from launchers.plan import read_plan

    return [read_plan(each) for each in sweep_runs(run_dir)]


def _has_ended(plan: LaunchPlan) -> bool:
    return _status(plan).state.ended


def _status(plan: LaunchPlan) -> Status:
    from launchers.begin import job_of
    from launchers.status import status_of

    return status_of(plan, job_of(plan))
