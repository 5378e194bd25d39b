"""Before and beside a launch: whether there is one already, its job, and the wish that it should end."""

from __future__ import annotations

from distrib.errors import InputError
from distrib.files import write_error
from launchers.places import cancel_file, plan_file
from launchers.plan import LaunchPlan, read_plan
from launchers.states import Job
from launchers.status import status_of


def job_of(plan: LaunchPlan) -> Job | None:
    """The job of a plan as its target knows it; None where it knows none."""
    if plan.target == "slurm":
        from launchers.slurm.job import find as find_slurm

        return find_slurm(plan)
    if plan.target == "ray":
        from launchers.ray.job import find as find_ray

        return find_ray(plan)
    from launchers.local.job import find as find_local

    return find_local(plan)


def refuse_running(plan: LaunchPlan) -> None:
    """Raise InputError where the run directory belongs to a launch that waits or runs."""
    if not plan_file(plan.run_dir).exists():
        return
    before = read_plan(plan.run_dir)
    state = status_of(before, job_of(before)).state
    if state.name in ("pending", "requeued", "running"):
        raise InputError(
            f"{plan.run_dir}: is launched already on {before.target} ({state.name}); wait for it, or end "
            f"it with `ketos launch cancel {plan.run_dir}`."
        )


def ask_to_end(plan: LaunchPlan) -> None:
    """Leave the wish in the run directory, where the agent finds it within a second. Raises KetosError."""
    path = cancel_file(plan.run_dir)
    try:
        path.touch()
    except OSError as error:
        raise write_error(path, error) from error
