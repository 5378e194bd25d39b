"""How a launch stands, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from distrib.wording import plural
from launchers.history import AttemptRecord
from launchers.plan import LaunchPlan
from launchers.status import Status


def print_status(plan: LaunchPlan, status: Status) -> None:
    """A few lines: state, figures, attempts."""
    state = status.state
    click.echo(f"{plan.run_dir}: {plan.command} on {plan.target}, {state.name}")
    if state.sentence:
        click.echo(f"  {state.sentence}")
    if status.step:
        figures = [f"step {status.step.get('step')}", f"loss {_number(status.step.get('loss'))}"]
        if status.validation:
            figures.append(f"best seen accuracy {_number(status.validation.get('val_accuracy'))}")
        click.echo(f"  {', '.join(figures)}")
    for attempt in status.history.attempts:
        click.echo(f"  {_attempt_line(attempt)}")
    if not state.ended:
        click.echo(f"  logs: ketos launch logs --follow {plan.run_dir}")


def print_json(found: Sequence[tuple[LaunchPlan, Status]]) -> None:
    """A list of objects, one a run."""
    click.echo(json.dumps([_plain(plan, status) for plan, status in found], indent=2, ensure_ascii=False))


def _plain(plan: LaunchPlan, status: Status) -> dict[str, Any]:
    return {
        "run_dir": str(plan.run_dir),
        "target": plan.target,
        "command": plan.command,
        "state": status.state.name,
        "sentence": status.state.sentence,
        "step": status.step,
        "validation": status.validation,
        "attempts": [{**each.begin, **each.end} for each in status.history.attempts],
    }


def _attempt_line(attempt: AttemptRecord) -> str:
    begin, end = attempt.begin, attempt.end
    where = f"job {begin['job']}, " if begin.get("job") else ""
    processes = plural(int(end.get("processes") or begin.get("processes") or 1), "process", "processes")
    line = f"attempt {attempt.number} ({where}{processes}, {begin.get('time', '')[:19]})"
    if not end:
        return f"{line}: no end on record"
    line = f"{line}: {end.get('cause')} after {end.get('seconds')} s"
    return f"{line}; {end['sentence']}" if end.get("sentence") else line


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "?"
