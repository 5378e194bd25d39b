"""Submitting a plan as a batch job, through submitit; or running its agent in the job that this is in."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from distrib.config.launching import SlurmLaunch
from distrib.errors import InputError, KetosError
from distrib.files import write_error, written_whole
from launchers.agent import run_attempts
from launchers.attempts import Attempt, Outcome
from launchers.places import launch_folder
from launchers.plan import LaunchPlan, write_plan
from launchers.slurm.environment import allocation, for_sbatch, job_id, nodes_of_job, restarts
from launchers.slurm.job import SlurmJob, record
from launchers.slurm.limits import check_limits
from launchers.slurm.refusals import check_script, refused
from launchers.slurm.requeue import requeue_of
from launchers.slurm.script import array_tasks, script, slurm_options, submitit_slurm, sweep_script
from launchers.slurm.step import start_step
from launchers.slurm.watcher import ask, require_programs
from launchers.stop import StopRequest

_PROGRAMS: Final = ("sbatch", "srun", "scancel", "scontrol", "sinfo")


def check(plan: LaunchPlan) -> None:
    """Raise InputError where the job cannot be submitted or could never start, as far as that is known."""
    submitit_slurm()
    require_programs(_PROGRAMS)
    options = slurm_options(plan)
    for line in (*options.sbatch_line, *options.setup, str(plan.run_dir), str(plan.folder), plan.name):
        if "\n" in line:
            raise InputError(
                f"{line!r}: this becomes a line of the batch script, which has no line breaks in it."
            )
    for line in options.sbatch_line:
        if not line.removeprefix("#SBATCH ").startswith("-"):
            raise InputError(f"--sbatch-line {line}: must be an option of sbatch, such as --licenses=x.")
    check_limits(options, plan.processes_per_node)
    check_script(script(plan), options)


def dry_run(plan: LaunchPlan) -> str:
    """The batch script, exactly as it is submitted."""
    return script(plan)


def submit(plan: LaunchPlan) -> SlurmJob:
    """Queue the job of a plan that has been written.

    Raises InputError where SLURM refuses it; then there is no job.
    """
    number = _sbatch(script(plan), launch_folder(plan.run_dir), slurm_options(plan))
    _record_or_cancel([plan.run_dir], [number], whole=number)
    return SlurmJob(id=number, run_dir=plan.run_dir)


def submit_sweep(plans: Sequence[LaunchPlan], directory: Path) -> SlurmJob:
    """Queue the runs of a sweep, which ``directory/sweep.json`` lists in this order, as one job array.

    Gives the job of the whole array; each run directory has that of its own run on record.
    """
    number = _sbatch(sweep_script(plans, directory), directory, slurm_options(plans[0]))
    tasks = array_tasks(slurm_options(plans[0]).array, len(plans))
    run_dirs = [plans[task].run_dir for task in tasks]
    _record_or_cancel(run_dirs, [f"{number}_{task}" for task in tasks], whole=number)
    return SlurmJob(id=number, run_dir=directory)


def run_here(plan: LaunchPlan, *, echo: Callable[[str], None] = print, followed: bool = False) -> int:
    """Run the agent of a plan in the job that this process is in, on what was allocated to it."""
    options = slurm_options(plan)
    given = allocation(os.environ)
    options = dataclasses.replace(
        options,
        nodes=given.nodes,
        min_nodes=None,
        procs_per_node=options.procs_per_node or given.procs_per_node,
        cpus_per_proc=options.cpus_per_proc or given.cpus_per_proc,
        gpus_per_node=options.gpus_per_node or given.gpus_per_node,
    )
    plan = dataclasses.replace(plan, options=options)
    write_plan(plan)
    return run_agent(plan, echo=echo, followed=followed)


def run_agent(plan: LaunchPlan, *, echo: Callable[[str], None] = print, followed: bool = False) -> int:
    """Attempts as steps of this job, until the run ends or the job is queued again; the exit code.

    ``followed`` says that what rank zero prints is shown anyway.
    """
    require_programs(("srun", "scontrol", "scancel"))
    environ = dict(os.environ)
    job = job_id(environ)
    nodes = nodes_of_job(environ)
    cpus = slurm_options(plan).cpus_per_proc or allocation(environ).cpus_per_proc
    # With --min-nodes there may be fewer nodes than were asked for.
    plan = dataclasses.replace(plan, options=dataclasses.replace(plan.options, nodes=nodes))
    record(plan.run_dir, job)
    echo(f"job {job} on {nodes} node(s), {plan.processes} process(es): {plan.command} in {plan.run_dir}")
    echo(f"logs of the processes: {launch_folder(plan.run_dir)}/attempts")

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        return start_step(plan, attempt, stop, job=job, nodes=nodes, cpus_per_proc=cpus, environ=environ)

    return run_attempts(
        plan,
        start,
        requeue=requeue_of(job, restarts=restarts(environ), echo=echo),
        job=job,
        wait_for_other=True,
        followed=followed,
        echo=echo,
    )


def _sbatch(text: str, folder: Path, options: SlurmLaunch) -> str:
    """Submit a script, kept in ``folder`` for people to read; the job's number."""
    require_programs(_PROGRAMS)
    path = folder / "job.sh"
    executor = submitit_slurm().SlurmExecutor(folder=folder)
    try:
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise write_error(path, error) from error
    try:
        answer = ask(*executor._make_submission_command(path), environ=for_sbatch(os.environ))
        if answer.code != 0:
            raise refused(answer, options)
    except KetosError:
        path.unlink(missing_ok=True)
        raise
    return str(executor._get_job_id_from_submission_command(answer.out))


def _record_or_cancel(run_dirs: Sequence[Path], jobs: Sequence[str], *, whole: str) -> None:
    try:
        for run_dir, job in zip(run_dirs, jobs, strict=True):
            record(run_dir, job)
    except KetosError:
        ask("scancel", whole)
        raise
