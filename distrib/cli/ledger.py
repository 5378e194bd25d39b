"""`ketos ledger`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distrib.cli.options import require_sources, section_command
from distrib.config.sections import Globals, Ledger
from distrib.errors import InputError
from distrib.wording import plural

if TYPE_CHECKING:
    from distrib.stream.ledger_report import EpochReport, LedgerReport, Numbers

_FOLDER = "ledger"
_SHOWN = 20
_NOT_EXACT = 1


@section_command("ledger")
def ledger_command(_: Globals, options: Ledger) -> None:
    """Prove from the ledger of a run that every line was trained on exactly once an epoch.

    RUN is the run's directory. Exits with 0 where every epoch is exact, with 1 where lines were lost or
    repeated.
    """
    require_sources(options.run, remedy="No run given: name the directory of a run.")
    from distrib.stream.ledger_report import verify_ledger

    reports = {run: verify_ledger(_directory(run), options.epoch) for run in options.run}
    if options.json:
        printed = [{"run": str(run), **_as_json(report)} for run, report in reports.items()]
        click.echo(json.dumps(printed[0] if len(printed) == 1 else printed, indent=2))
    else:
        for run, report in reports.items():
            if len(reports) > 1:
                click.echo(f"{run}:")
            _print(report)
    if not all(report.exact for report in reports.values()):
        click.get_current_context().exit(_NOT_EXACT)


def _directory(run: Path) -> Path:
    if (run / _FOLDER).is_dir():
        return run / _FOLDER
    if not run.is_dir():
        raise InputError(f"{run} is no folder; name the directory of a run.")
    return run


def _print(report: LedgerReport) -> None:
    for problem in report.problems:
        click.echo(f"Warning: {problem}.", err=True)
    if not report.epochs:
        click.echo("No step has been done yet.")
    for epoch in report.epochs:
        click.echo(_sentence(epoch))
        for name, numbers in _faults(epoch):
            click.echo(f"  {name}: {_listed(numbers)}")


def _sentence(epoch: EpochReport) -> str:
    """An epoch in a line: ``epoch 3: 335 lines in 84 steps, each exactly once (1 process from step 252)``."""
    given = epoch.lines + epoch.bad
    done = f"{plural(given, 'line')} in {plural(epoch.steps, 'step')}"
    faults = [f"{numbers.count:,} {name}" for name, numbers in _faults(epoch)]
    if epoch.under_way:
        last = max(part.last_step for part in epoch.segments)
        done = f"under way: step {last}, {given:,} of {plural(epoch.expected, 'line')}"
        outcome = ", ".join(faults) or "none twice"
    else:
        outcome = ", ".join(faults) or "each exactly once"
    bad = f", {epoch.bad:,} of them unusable" if epoch.bad else ""
    parts = (
        f"{part.world_size} process{'' if part.world_size == 1 else 'es'} from step {part.first_step}"
        for part in epoch.segments
    )
    return f"epoch {epoch.epoch}: {done}, {outcome}{bad} ({', '.join(parts)})"


def _faults(epoch: EpochReport) -> list[tuple[str, Numbers]]:
    named = [("lost", epoch.lost), ("repeated", epoch.repeated), ("not to be trained on", epoch.foreign)]
    return [(name, numbers) for name, numbers in named if numbers.count]


def _listed(numbers: Numbers) -> str:
    shown = ", ".join(map(str, numbers.first[:_SHOWN]))
    return f"{shown}, …" if numbers.count > _SHOWN else shown


def _as_json(report: LedgerReport) -> dict[str, Any]:
    epochs = [
        dataclasses.asdict(epoch) | {"exact": epoch.exact, "complete": epoch.complete}
        for epoch in report.epochs
    ]
    return {"exact": report.exact, "problems": list(report.problems), "epochs": epochs}
