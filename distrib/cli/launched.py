"""`ketos launch status|logs|cancel|wait`: a launched run seen, waited for and ended by its directory."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distrib.config.launching import Target

if TYPE_CHECKING:
    from launchers.plan import LaunchPlan
    from launchers.status import Status

_LOOK_SECONDS: dict[Target, float] = {"local": 1.0, "slurm": 5.0, "ray": 5.0}


@click.command("status", short_help="How a launched run stands.")
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


@click.command("logs", short_help="What the processes of a launched run print.")
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


@click.command("cancel", short_help="End a launched run, which saves first.")
@click.argument("run_dir", type=click.Path(path_type=Path))
def cancel_command(run_dir: Path) -> None:
    """End a launched run, on whatever machine it is: its processes save, and nothing is started again."""
    from launchers.begin import ask_to_end
    from launchers.targets import job_of

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


@click.command("wait", short_help="Wait for the end of a launched run.")
@click.argument("run_dir", type=click.Path(path_type=Path))
def wait_command(run_dir: Path) -> None:
    """Wait for the end of a launched run; the exit code is that of the run."""
    sys.exit(wait_for(run_dir))


def wait_for(run_dir: Path) -> int:
    """Wait for the end of a run or sweep, and show it; the worst exit code."""
    from distrib.cli.launch_display import print_status

    code = 0
    for plan in _plans(run_dir):
        status = _status(plan)
        while not status.state.ended:
            time.sleep(_LOOK_SECONDS[plan.target])
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
    from launchers.status import status_of
    from launchers.targets import job_of

    return status_of(plan, job_of(plan))
