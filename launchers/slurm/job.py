"""A job of SLURM that runs a launch: its state and its end, from any machine of the cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from distrib.errors import RunError
from distrib.files import write_error, written_whole
from launchers.history import read_history
from launchers.places import cancel_file, launch_folder
from launchers.plan import LaunchPlan
from launchers.slurm.environment import job_id
from launchers.slurm.watcher import JobFacts, accounted_state, ask, show_job
from launchers.states import JobState, StateName

_RECORD: Final = "slurm.json"

_STATES: Final[dict[str, StateName]] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "requeued",
    "REQUEUE_HOLD": "requeued",
    "REQUEUE_FED": "requeued",
    "SPECIAL_EXIT": "requeued",
    "RUNNING": "running",
    "COMPLETING": "running",
    "STAGE_OUT": "running",
    "SIGNALING": "running",
    "RESIZING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
    "BOOT_FAIL": "failed",
    "DEADLINE": "failed",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "PREEMPTED": "failed",
    "TIMEOUT": "failed",
}


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The job ``id`` (``123``, or ``123_4`` of an array), which runs the launch in ``run_dir``."""

    id: str
    run_dir: Path

    def state(self) -> JobState:
        """What the controller says, else the accounting database; unknown where neither knows."""
        facts = show_job(self.id)
        if facts is not None:
            return state_of(facts)
        name = accounted_state(self.id)
        if name not in _STATES:
            return JobState(name="unknown", sentence=f"SLURM does not know job {self.id} or does not answer.")
        return JobState(name=_STATES[name], sentence=_sentence(name))

    def cancel(self) -> None:
        """Have the agent end the run, or take the job from the queue where it has not begun.

        Raises InputError without scancel, RunError where SLURM does not answer.
        """
        with suppress(OSError):
            launch_folder(self.run_dir).mkdir(parents=True, exist_ok=True)
            cancel_file(self.run_dir).touch()
        facts = show_job(self.id)
        # A running agent finds the file and lets its processes save; a second call of this does not wait.
        if facts is None or facts.state != "RUNNING":
            self.kill()

    def kill(self) -> None:
        """End the job by SLURM, whatever it does. Raises like ``cancel``; harmless where it has ended."""
        answer = ask("scancel", self.id)
        if answer.code != 0 and "Invalid job id" not in answer.err and "already completing" not in answer.err:
            raise RunError(
                f"Job {self.id} could not be cancelled ({answer.complaint}); try: scancel {self.id}"
            )


def state_of(facts: JobFacts) -> JobState:
    """A job's state in the words of all targets."""
    if facts.requeued() and (facts.state != "PENDING" or facts.restarts > 0):
        return JobState(name="requeued", sentence=_waiting(facts))
    if facts.state == "PENDING":
        return JobState(name="pending", sentence=_waiting(facts))
    name = _STATES.get(facts.state, "unknown")
    return JobState(name=name, sentence=_sentence(facts.state))


def record(run_dir: Path, job: str) -> None:
    """Keep a job's number in its run directory. Raises KetosError where that cannot be."""
    path = launch_folder(run_dir) / _RECORD
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps({"job": job}).encode())
    except OSError as error:
        raise write_error(path, error) from error


def recorded(run_dir: Path) -> str | None:
    """The number of the last job that was submitted for a run directory, or has run in it."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        return str(json.loads((launch_folder(run_dir) / _RECORD).read_bytes())["job"])
    return None


def find(plan: LaunchPlan) -> SlurmJob | None:
    """The job of a launch, as its run directory names it."""
    number = recorded(plan.run_dir)
    return None if number is None else SlurmJob(id=number, run_dir=plan.run_dir)


def restarted(run_dir: Path, environ: Mapping[str, str]) -> bool:
    """Whether the job that this runs in has been here before and SLURM has started it anew, or twice."""
    return recorded(run_dir) == job_id(environ) and read_history(run_dir).end is None


def _waiting(facts: JobFacts) -> str:
    if "held" in facts.reason.lower():
        return f"SLURM holds it ({facts.reason}); let it go with: scontrol release {facts.id}"
    return f"It waits ({facts.reason})." if facts.reason not in ("", "None") else "It waits."


def _sentence(state: str) -> str:
    return "" if state in ("RUNNING", "COMPLETED") else f"SLURM says {state}."
