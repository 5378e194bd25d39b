"""The course of one attempt as its driver sees it: from what the machines tell to how it came out. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launchers.attempts import Cause, Outcome
from launchers.plan import LaunchPlan
from launchers.ray.environment import Machine, difference, missing, not_installed
from launchers.ray.keeper import record_path

_ASKED_TO_END = 143
_KILLED = -9


@dataclass(kw_only=True)
class Course:
    """What is known of an attempt on ``size`` machines, numbered from 0.

    Messages of machines go in by ``take``. ``sentence`` and ``cause`` are set where the driver itself ends
    the attempt.
    """

    plan: LaunchPlan
    folder: Path
    nonce: str
    size: int
    places: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    facts: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    said: dict[int, list[str]] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    codes: dict[int, int] = field(default_factory=dict)
    started: bool = False
    asked_to_end: bool = False
    sentence: str | None = None
    cause: Cause | None = None

    def take(self, number: int, message: Mapping[str, Any]) -> None:
        """Note what machine ``number`` tells."""
        if "place" in message:
            self.places[number] = message["place"]
        elif "facts" in message:
            self.facts[number] = message["facts"]
        elif "said" in message:
            self.said.setdefault(number, []).append(str(message["said"]))
        elif "ended" in message:
            self._end_of(int(message["ended"]["rank"]), int(message["ended"]["code"]))
        elif "problem" in message:
            self.refuse(missing(self.plan, self.host(number), message["problem"]))
        elif "gone" in message:
            self.silent.add(number)
            if number not in self.facts and self.cause is None:
                self.refuse(not_installed(self.plan, self.host(number), self.said.get(number, ())))

    def refuse(self, sentence: str) -> None:
        """The attempt is of no use before something is mended."""
        self.interrupt("input", sentence)

    def interrupt(self, cause: Cause | None, sentence: str | None) -> None:
        """The driver ends the attempt; the first reason counts."""
        if self.cause is None and self.sentence is None:
            self.cause, self.sentence = cause, sentence

    def host(self, number: int) -> str:
        """What to call a machine in a sentence."""
        place = self.places.get(number, {})
        return str(place.get("host") or place.get("ip") or f"machine {number}")

    @property
    def complete(self) -> bool:
        """Whether all machines have said what they have."""
        return len(self.facts) == self.size

    def machines(self) -> list[Machine]:
        """All machines by number, once ``complete``."""
        return [
            Machine(
                node_id=str(self.places[number]["node_id"]),
                address=str(self.places[number]["ip"]),
                port=int(self.places[number]["port"]),
                host=str(facts["host"]),
                python=str(facts["python"]),
                ketos=str(facts["ketos"]),
                seen=facts["seen"],
                writable=bool(facts["writable"]),
            )
            for number, facts in sorted(self.facts.items())
        ]

    def check(self) -> None:
        """Refuse machines on which the run cannot work."""
        sentence = difference(self.machines(), self.plan, self.nonce)
        if sentence is not None:
            self.refuse(sentence)

    @property
    def failed(self) -> bool:
        """Whether a process is known to have ended badly."""
        return any(self.codes.values())

    def ended(self, number: int) -> bool:
        """Whether all processes of a machine are known to have ended."""
        each = self.plan.processes_per_node
        return all(rank in self.codes for rank in range(number * each, (number + 1) * each))

    def left_well(self, number: int) -> bool:
        """Whether the processes of a machine ended before it went, done or asked to."""
        each = self.plan.processes_per_node
        codes = [self.codes.get(rank) for rank in range(number * each, (number + 1) * each)]
        return all(code is not None and (code == 0 or asked_to_end(code)) for code in codes)

    def read_records(self) -> None:
        """Take over what keepers have left in the folder of the attempt, which some could not tell."""
        for number in range(self.size):
            try:
                found = json.loads(record_path(self.folder, number).read_bytes())["codes"]
                for rank, code in found.items():
                    self._end_of(int(rank), int(code))
                self.silent.add(number)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue

    def _end_of(self, rank: int, code: int) -> None:
        self.codes.setdefault(rank, code)

    def outcome(self, *, lost: Sequence[str], trouble: str | None) -> Outcome:
        """How the attempt came out; ``lost`` names machines that are gone, ``trouble`` is Ray's own word."""
        processes = self.size * self.plan.processes_per_node
        bad = [code for code in self.codes.values() if code]
        cause, sentence = self.cause, self.sentence
        if len(self.codes) == processes and not bad:
            return Outcome(code=0, codes=dict(self.codes), nodes=self.size, processes=processes)
        if not bad and cause is None and trouble is not None:
            # Ray could not place the workers, or they went before they had begun.
            cause, sentence = "lost", trouble
        if cause == "input":
            code = 2
        elif bad:
            code = bad[0]
        else:
            code = _ASKED_TO_END if self.asked_to_end else _KILLED
        if bad and trouble is not None and not lost and sentence is None and all(map(asked_to_end, bad)):
            sentence = "A worker of Ray has died, so all processes were told to save and end."
        return Outcome(
            code=code,
            codes=dict(self.codes),
            lost=tuple(lost),
            sentence=sentence,
            cause=cause,
            nodes=self.size,
            processes=processes,
        )


def asked_to_end(code: int) -> bool:
    """Whether a process ended because it was told to, its state saved or not."""
    return code in (_ASKED_TO_END, -15)
