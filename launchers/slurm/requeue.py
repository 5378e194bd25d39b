"""Giving a job back to the queue, from its own batch step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from distrib.errors import RunError
from launchers.slurm.watcher import ask, show_job

_TRIES_SECONDS: Final = 100.0
_PAUSE: Final = 5.0


def requeue_of(job: str, *, restarts: int, echo: Callable[[str], None]) -> Callable[[], None] | None:
    """What queues this job again; None where SLURM would not: a shell of salloc, a job with --no-requeue."""
    facts = show_job(job)
    if facts is not None and not (facts.batch and facts.may_requeue):
        return None
    return lambda: requeue(job, restarts=restarts, echo=echo)


def requeue(job: str, *, restarts: int, echo: Callable[[str], None]) -> None:
    """Queue a job again, unless SLURM has done so already.

    Raises RunError where the controller does not answer for as long as there is time.
    """
    deadline = time.monotonic() + _TRIES_SECONDS
    while True:
        facts = show_job(job)
        if facts is not None and facts.requeued(restarts):
            return
        answer = ask("scontrol", "requeue", job)
        if answer.code == 0:
            return
        if time.monotonic() > deadline or not answer.silent:
            raise RunError(
                f"Job {job} could not be queued again ({answer.complaint}); launch the run again "
                "to go on with it."
            )
        echo(f"The controller does not answer ({answer.complaint}); trying again.")
        time.sleep(_PAUSE)
