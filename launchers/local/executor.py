"""Running a plan on this machine: in the foreground, detached, or only described."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from distrib.errors import RunError
from distrib.runtime.directory.lease_file import lease_in_force
from launchers.agent import run_attempts
from launchers.attempts import Attempt, Outcome
from launchers.following import last_line
from launchers.local import ranks
from launchers.local.elastic import read_codes
from launchers.local.environment import check_machine
from launchers.places import agent_log, launch_folder
from launchers.plan import LaunchPlan
from launchers.programs import SAFE_PATH, module_words
from launchers.stop import StopRequest
from launchers.time_limit import TIME_IS_OVER, seconds_left, time_over

_GRACE = 120.0
"""Seconds that processes have to save and end before they are killed."""
_AFTER_GRACE = 15.0
"""Seconds for the elastic agent to end when it has killed what was left."""
_BEGINS_WITHIN = 120.0
"""Seconds in which a detached agent takes up its work, be the disk as slow as it may."""
_LOOK = 0.1


def check(plan: LaunchPlan) -> None:
    """Raise InputError where this machine cannot give what the plan asks for."""
    check_machine(plan, os.environ)


def dry_run(plan: LaunchPlan) -> str:
    """The processes that would run, with what tells them apart."""
    attempt = Attempt.of(plan, 1, *plan.first)
    lines = [f"{plan.processes} process(es) on this machine, in {plan.folder}:"]
    lines += [f"  {name}={value}" for name, value in attempt.environment.items()]
    lines.append(f"  {shlex.join(attempt.words)}")
    lines.append("  rank  local rank  log")
    lines += [f"  {rank:4}  {rank:10}  {attempt.log(rank)}" for rank in range(plan.processes)]
    return "\n".join(lines) + "\n"


def run_here(plan: LaunchPlan, *, echo: Callable[[str], None] = print, followed: bool = False) -> int:
    """Run a plan in this process, which is its agent, until its end; the exit code.

    ``followed`` says that what rank zero prints is shown anyway.
    """

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        return start_attempt(plan, attempt, stop)

    return run_attempts(plan, start, echo=echo, followed=followed)


def submit(plan: LaunchPlan, *, begins_within: float = _BEGINS_WITHIN) -> int:
    """Run a plan in a process of its own, which stays when this one ends; its process id.

    It runs by this process's interpreter, whatever the processes of the run have. Raises RunError where it
    ends before it has taken up its work, or does not take it up.
    """
    before = _lease(plan)
    with agent_log(plan.run_dir).open("ab") as log:
        log_size = log.tell()
        process = subprocess.Popen(  # noqa: S603
            [*module_words(sys.executable, "launchers.local"), str(plan.run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=plan.folder,
            env={**os.environ, **SAFE_PATH},
            start_new_session=True,
        )
    deadline = time.monotonic() + begins_within
    while process.poll() is None and _lease(plan) in (None, before):
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RunError(
                f"The agent of {plan.run_dir} has not begun within {begins_within:.0f} s "
                f"({_said(plan, log_size)}); look at this machine's load and disks."
            )
        time.sleep(_LOOK)
    if process.returncode:
        raise RunError(f"The agent of {plan.run_dir} ended at once: {_said(plan, log_size)}")
    return process.pid


def _lease(plan: LaunchPlan) -> str | None:
    """What tells the lease of an agent from that of another; None where there is none."""
    found = lease_in_force(launch_folder(plan.run_dir))
    return None if found is None else found.key


def _said(plan: LaunchPlan, log_size: int) -> str:
    return last_line(agent_log(plan.run_dir), after=log_size).removeprefix("Error: ")


def start_attempt(plan: LaunchPlan, attempt: Attempt, stop: StopRequest, *, grace: float = _GRACE) -> Outcome:
    """All processes of an attempt, until none is left; they have ``grace`` seconds to end when told to."""
    limit = seconds_left(plan)
    if limit is not None and limit <= 0:
        return Outcome(code=1, processes=plan.processes, cause=TIME_IS_OVER, sentence=time_over(plan))
    command = module_words(sys.executable, "launchers.local.elastic")
    with (attempt.folder / "elastic.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            [*command, str(plan.processes), str(attempt.folder), str(grace), *attempt.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=plan.folder,
            env={**os.environ, **attempt.environment},
            start_new_session=True,
        )
    out_of_time = _watch(process, stop, limit, grace)
    # It may have been killed; its processes are told by the kernel then, and the next attempt must not meet
    # them while they save.
    ranks.end_left(attempt.folder, grace)
    codes = read_codes(attempt.folder)
    code = process.returncode
    return Outcome(
        code=code,
        codes=codes,
        processes=plan.processes,
        cause=TIME_IS_OVER if out_of_time and code else None,
        sentence=time_over(plan) if out_of_time and code else None,
    )


def _watch(process: subprocess.Popen[bytes], stop: StopRequest, limit: float | None, grace: float) -> bool:
    """Wait for the end, and bring it about when it is wanted; whether the time limit has."""
    began = time.monotonic()
    while process.poll() is None and stop.reason is None:
        if limit is not None and time.monotonic() - began > limit:
            break
        time.sleep(_LOOK)
    out_of_time = process.poll() is None and stop.reason is None
    if process.poll() is None:
        process.send_signal(signal.SIGUSR2)
        try:
            process.wait(grace + _AFTER_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return out_of_time
