"""Running a plan on this machine: in the foreground, detached, or only described."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from distrib.config.launching import time_limit_minutes
from distrib.errors import RunError
from distrib.runtime.directory.lease_file import lease_in_force
from launchers.agent import run_attempts
from launchers.attempts import Attempt, Outcome
from launchers.commands import shown_command
from launchers.local.elastic import read_codes
from launchers.local.environment import check_machine
from launchers.places import agent_log, launch_folder
from launchers.plan import LaunchPlan
from launchers.stop import StopRequest

_GRACE = 120.0
"""Seconds that processes have to save and end before they are killed."""
_LOOK = 0.1


def check(plan: LaunchPlan) -> None:
    """Raise InputError where this machine cannot give what the plan asks for."""
    check_machine(plan, os.environ)


def dry_run(plan: LaunchPlan) -> str:
    """The processes that would run, with what tells them apart."""
    attempt = Attempt.of(plan, 1, *plan.first)
    lines = [f"{plan.processes} process(es) on this machine, in {plan.folder}:"]
    lines += [f"  {name}={value}" for name, value in attempt.environment.items()]
    lines.append(f"  {shown_command(attempt.words)}")
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


def submit(plan: LaunchPlan) -> int:
    """Run a plan in a process of its own, which stays when this one ends; its process id.

    Raises RunError where it ends before it has taken up its work.
    """
    with agent_log(plan.run_dir).open("ab") as log:
        log_size = log.tell()
        process = subprocess.Popen(  # noqa: S603
            [plan.python, "-m", "launchers.local", str(plan.run_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=plan.folder,
            start_new_session=True,
        )
    while lease_in_force(launch_folder(plan.run_dir)) is None:
        if process.poll() is not None and process.returncode:
            printed = agent_log(plan.run_dir).read_bytes()[log_size:].decode(errors="replace").strip()
            reason = printed.splitlines()[-1].removeprefix("Error: ") if printed else "it says nothing"
            raise RunError(f"The agent of {plan.run_dir} ended at once: {reason}")
        if process.poll() is not None:
            break
        time.sleep(_LOOK)
    return process.pid


def start_attempt(plan: LaunchPlan, attempt: Attempt, stop: StopRequest) -> Outcome:
    """All processes of an attempt, until the last has ended."""
    command = [sys.executable, "-m", "launchers.local.elastic", str(plan.processes), str(attempt.folder)]
    limit = None if plan.options.time is None else 60.0 * time_limit_minutes(plan.options.time)
    with (attempt.folder / "elastic.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            [*command, *attempt.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=plan.folder,
            env={**os.environ, **attempt.environment},
            start_new_session=True,
        )
    out_of_time = _watch(process, stop, limit)
    codes = read_codes(attempt.folder)
    code = process.returncode
    return Outcome(
        code=code,
        codes=codes,
        processes=plan.processes,
        cause="cancelled" if out_of_time and code else None,
        sentence=f"The time of --time {plan.options.time} is over." if out_of_time and code else None,
    )


def _watch(process: subprocess.Popen[bytes], stop: StopRequest, limit: float | None) -> bool:
    """Wait for the end, and bring it about when it is wanted; whether the time limit has."""
    began = time.monotonic()
    while process.poll() is None and stop.reason is None:
        if limit is not None and time.monotonic() - began > limit:
            break
        time.sleep(_LOOK)
    out_of_time = process.poll() is None and stop.reason is None
    if process.poll() is None:
        process.send_signal(signal.SIGUSR2)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return out_of_time
