"""Before and beside a launch: whether there is one already, its record, and the wish that it should end."""

from __future__ import annotations

import shutil
from dataclasses import asdict

from distrib.errors import InputError, KetosError
from distrib.files import write_error
from distrib.runtime.directory.events import EVENTS, EventLog
from distrib.runtime.directory.machine import this_process
from launchers.history import read_history
from launchers.places import cancel_file, plan_file
from launchers.plan import LaunchPlan, read_plan, write_plan
from launchers.status import status_of
from launchers.targets import job_of


def put_on_record(plan: LaunchPlan) -> None:
    """Write a plan and its launch, by this process, into the run directory. Raises KetosError."""
    write_plan(plan)
    cancel_file(plan.run_dir).unlink(missing_ok=True)
    EventLog(plan.run_dir / EVENTS).append(
        "launch",
        target=plan.target,
        command=plan.command,
        nodes=plan.options.nodes,
        processes=plan.processes,
        by=asdict(this_process()),
    )


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


def forget(plan: LaunchPlan, error: KetosError, *, new: bool) -> None:
    """Undo the record of a launch that was not taken: a ``new`` run directory goes; else it says why not."""
    if new:
        shutil.rmtree(plan.run_dir, ignore_errors=True)
        return
    if not plan.run_dir.exists():
        return
    number = read_history(plan.run_dir).numbered + 1
    events = EventLog(plan.run_dir / EVENTS)
    events.append("attempt", attempt=number, target=plan.target)
    events.append(
        "attempt_end",
        attempt=number,
        cause="input" if error.exit_code == InputError.exit_code else "run",
        decision="end",
        code=error.exit_code,
        sentence=str(error),
        seconds=0.0,
    )
