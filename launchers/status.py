"""How a launch stands, from its files and its scheduler; readable from any machine that sees the files."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distrib.runtime.directory.lease_file import lease_in_force
from distrib.runtime.directory.machine import ProcessIdentity, this_process
from launchers.history import History, read_history
from launchers.places import launch_folder
from launchers.plan import LaunchPlan
from launchers.states import Job, JobState, StateName

_ENDS: dict[str, StateName] = {"done": "done", "cancelled": "cancelled"}
_SILENT_SECONDS = 30.0
_TAIL = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a launch, its history, and the newest figures of the run (steps.jsonl, metrics.jsonl)."""

    state: JobState
    history: History
    step: dict[str, Any]
    validation: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """That of the run, where it has ended: 0 only where it is done."""
        end = self.history.end
        return int(end.end.get("code", 1)) if end is not None else 0 if self.state.name == "done" else 1


def status_of(plan: LaunchPlan, job: Job | None) -> Status:
    """The state of a launch. Raises OSError where its files cannot be read."""
    history = read_history(plan.run_dir)
    return Status(
        state=_state(plan, history, job),
        history=history,
        step=_last_row(plan.run_dir / "steps.jsonl"),
        validation=_last_row(plan.run_dir / "metrics.jsonl"),
    )


def _state(plan: LaunchPlan, history: History, job: Job | None) -> JobState:
    end = history.end
    if end is not None:
        sentence = "" if end.cause == "done" else str(end.end.get("sentence", ""))
        return JobState(name=_ENDS.get(end.cause or "", "failed"), sentence=sentence)
    asked = JobState(name="unknown") if job is None else job.state()
    if asked.name in ("pending", "requeued", "cancelled"):
        return asked
    lives = _agent_lives(plan, history)
    if lives:
        return JobState(name="running")
    if asked.name != "unknown" and not asked.ended:
        return asked
    if lives is False or asked.ended or (asked.name == "unknown" and _launcher_has_ended(history)):
        again = f"Its agent is gone without a word; `{_again(plan)}` goes on with it."
        return JobState(name="lost", sentence=again)
    return JobState(name="pending", sentence="No agent has begun yet.")


def _again(plan: LaunchPlan) -> str:
    return f"ketos launch {plan.target} … -- {plan.command} …"


def _launcher_has_ended(history: History) -> bool:
    """Whether the process that put the launch on record is known to have ended."""
    try:
        return ProcessIdentity(**history.launch["by"]).has_ended(this_process())
    except (KeyError, TypeError):
        return False


def _agent_lives(plan: LaunchPlan, history: History) -> bool | None:
    """Whether the agent gives signs of life; None where there has never been one."""
    try:
        found = lease_in_force(launch_folder(plan.run_dir))
    except OSError:
        return None
    if found is None:
        return False if history.attempts else None
    if found.holder is not None and found.holder.process.has_ended(this_process()):
        return False
    return _server_age(plan, found.modified) < _SILENT_SECONDS


def _server_age(plan: LaunchPlan, modified: float) -> float:
    """Seconds since then by the clock of the file server, which a file of ours shows."""
    probe = launch_folder(plan.run_dir) / ".clock"
    try:
        probe.touch()
        age = probe.stat().st_mtime - modified
        probe.unlink(missing_ok=True)
    except OSError:  # a directory that may only be read
        return time.time() - modified
    return age


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a record that may be long."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                return row
    return {}
