"""What has become of a run so far, from its ``events.jsonl``: launches, attempts, saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from distrib.runtime.directory.events import EVENTS, read_events
from launchers.attempts import Cause
from launchers.retry import Action, PastAttempt


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """An attempt as events tell it; ``end`` is empty while it runs, and where its agent was killed."""

    number: int
    begin: Mapping[str, Any]
    end: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0

    @property
    def cause(self) -> Cause | None:
        """Why it ended, where that is on record."""
        cause = self.end.get("cause")
        return cast(Cause, cause) if cause in get_args(Cause) else None

    @property
    def decision(self) -> Action | None:
        """What was to follow it."""
        decision = self.end.get("decision")
        return cast(Action, decision) if decision in get_args(Action) else None


@dataclass(frozen=True, kw_only=True)
class History:
    """The attempts of the newest launch. ``numbered`` is the number of the last one of any launch, ``step``
    the last global step saved. Since the launch: ``begun`` says whether processes have got as far as to start
    their command, ``saved`` whether they have saved anything, ``launch`` holds its facts, ``batch`` the
    micro-batch last chosen."""

    launch: Mapping[str, Any]
    attempts: Sequence[AttemptRecord]
    numbered: int
    step: int
    begun: bool
    saved: bool
    batch: Mapping[str, int]

    @property
    def end(self) -> AttemptRecord | None:
        """The attempt with which the launch came to its end, if it has."""
        last = self.attempts[-1] if self.attempts else None
        return last if last is not None and last.decision == "end" else None

    def past(self) -> list[PastAttempt]:
        """The attempts that have ended; where nobody wrote down why, the machine of the agent went away."""
        return [
            PastAttempt(number=each.number, cause=each.cause or "lost", step=each.step)
            for each in self.attempts
        ]


def read_history(run_dir: Path) -> History:
    """The history of a run directory; empty where nothing has happened. Raises OSError."""
    launch: Mapping[str, Any] = {}
    attempts: list[AttemptRecord] = []
    numbered, step, begun, saved = 0, 0, False, False
    batch: dict[str, int] = {}
    for event in read_events(run_dir / EVENTS):
        kind, number = event["event"], event.get("attempt")
        if kind == "launch":
            launch, attempts, begun, saved, batch = event, [], False, False, {}
        elif kind == "attempt" and isinstance(number, int):
            numbered = max(numbered, number)
            attempts.append(AttemptRecord(number=number, begin=event))
        elif kind == "attempt_end" and attempts and attempts[-1].number == number:
            attempts[-1] = AttemptRecord(number=number, begin=attempts[-1].begin, end=event, step=step)
        elif kind == "save" and isinstance(event.get("step"), int):
            step, saved = event["step"], True
        elif kind == "start":
            begun = True
        elif kind == "smaller_batch":
            batch = {key: event[key] for key in ("batch_size", "batch_pixels") if key in event}
    return History(
        launch=launch, attempts=attempts, numbered=numbered, step=step, begun=begun, saved=saved, batch=batch
    )
