"""`ketos launch`: the same command here, on SLURM, on Ray; and how it stands there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distrib.cli.launched import cancel_command, logs_command, status_command, wait_command, wait_for
from distrib.cli.options import section_options
from distrib.config.launching import LocalLaunch, RayLaunch, SlurmLaunch, Target
from distrib.errors import InputError, KetosError

if TYPE_CHECKING:
    from distrib.cli.launching import PlannedRun
    from distrib.config.launching import Launch
    from launchers.plan import LaunchPlan


_TOLD_TO_END = 128
"""Exit codes from here on say that somebody wanted the end."""


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

    settings = {"allow_interspersed_args": False}
    command = click.command(target, short_help=summary, context_settings=settings)(run)
    command.help = f"{summary}\n\nCOMMAND is compile, train, test or pretrain with its options."
    command.params.append(_WORDS)
    return command


launch_command.add_command(_target("local", LocalLaunch, "Run a command as processes of this machine."))
launch_command.add_command(_target("slurm", SlurmLaunch, "Run a command as a job of SLURM."))
launch_command.add_command(_target("ray", RayLaunch, "Run a command on a Ray cluster."))

for _command in (status_command, logs_command, cancel_command, wait_command):
    launch_command.add_command(_command)


def _launch(context: click.Context, target: Target, words: tuple[str, ...]) -> int:
    from distrib.cli.launching import forget_sweep, launch_options, parsed_command, plans_of

    options = launch_options(context, target)
    directory, runs = plans_of(options, target, parsed_command(context, words))
    if options.dry_run:
        click.echo(_dry_run(target, runs), nl=False)
        return 0
    if isinstance(options, LocalLaunch) and options.debug:
        return _debug(context, runs)
    if directory is None:
        forget_sweep(runs[0].plan.run_dir)
    return _runner(target)(directory, runs, options)


def _debug(context: click.Context, runs: list[PlannedRun]) -> int:
    """The command in this very process, for a debugger to look into."""
    import torch

    if len(runs) > 1:
        raise InputError("--debug is one run in one process; give it without --sweep.")
    plan = runs[0].plan
    os.environ.update(plan.environment)
    with tempfile.TemporaryDirectory(prefix="ketos-debug-") as folder:
        experiment = Path(folder) / "experiment.yml"
        experiment.write_text(runs[0].experiment, encoding="utf-8")
        words = ["--config", str(experiment), "--workers", "0", plan.command, *plan.first]
        with torch.autograd.detect_anomaly(check_nan=True):
            context.find_root().command.main(words, prog_name="ketos", standalone_mode=False)
    return 0


def _dry_run(target: Target, runs: list[PlannedRun]) -> str:
    from launchers.targets import executor_of

    texts = []
    for each in runs:
        texts += [executor_of(target).dry_run(each.plan), f"# {each.plan.experiment}", each.experiment]
    return "\n".join(texts)


def _runner(target: Target) -> Callable[[Path | None, list[PlannedRun], Any], int]:
    return {"local": _run_locally, "slurm": _run_on_slurm, "ray": _run_on_ray}[target]


def _begin(planned: PlannedRun) -> None:
    """Put a launch on record; from then on agents may come."""
    from launchers.begin import put_on_record

    planned.keep()
    put_on_record(planned.plan)


@contextmanager
def _kept(directory: Path | None, runs: list[PlannedRun]) -> Iterator[None]:
    """Put launches on record for the block that submits them; what fails there leaves no trace of them, but
    in run directories that were there before, where it stands on record."""
    from distrib.cli.launching import keep_sweep
    from launchers.begin import forget, refuse_running

    for each in runs:
        refuse_running(each.plan)
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
    return _one_after_the_other(directory, runs)


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
    return wait_for(directory or plans[0].run_dir) if options.wait else 0


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
    return _one_after_the_other(directory, runs)


def _one_after_the_other(directory: Path | None, runs: list[PlannedRun]) -> int:
    """Runs in the foreground, each put on record when its turn comes; the worst exit code."""
    from distrib.cli.launching import keep_sweep

    if directory is not None:
        keep_sweep(directory, runs)
    worst = 0
    for each in runs:
        with _kept(None, [each]):
            pass
        worst = max(worst, _in_foreground(each.plan))
        if worst >= _TOLD_TO_END:
            break
    return worst


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
