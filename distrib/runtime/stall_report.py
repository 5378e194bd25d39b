"""What the processes of a job tell of themselves when one hangs, in files, and who is to blame."""

from __future__ import annotations

import faulthandler
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from distrib.files import written_whole
from distrib.runtime.directory.machine import ProcessIdentity
from distrib.runtime.rendezvous import rank_list

_REQUEST: Final = "request.json"
_VERDICT: Final = "verdict.json"
_STATES: Final = {"T": "is stopped", "t": "is stopped", "D": "waits for a disk", "Z": "has ended"}


@dataclass(frozen=True, kw_only=True)
class StallReport:
    """What a process was doing when it was asked, and for how many seconds; ``exchange`` as in Phase."""

    rank: int
    host: str
    pid: int
    phase: str
    seconds: float
    data: bool
    exchange: int
    exchanges: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why the job ends: the sentence, and the rank that prints it."""

    sentence: str
    speaker: int


class ReportFolder:
    """The files of one stall: a request, of each rank its stacks and its report, and the verdict."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def requested(self) -> bool:
        """Whether a process has asked for reports."""
        # Listing the folder makes a network file system look anew, as asking for one file would not.
        with suppress(OSError):
            return any(path.name == _REQUEST for path in self.path.iterdir())
        return False

    def request(self, report: StallReport) -> None:
        """Ask all processes for their reports."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.path / _REQUEST, asdict(report))

    def write(self, report: StallReport) -> None:
        """Leave this process's stacks of all threads for people, and its report for the others."""
        with (self.path / f"rank-{report.rank}.txt").open("w", encoding="utf-8") as file:
            file.write(
                f"process {report.rank} on {report.host}, pid {report.pid}\n"
                f"phase: {phase_of(report)}, for {report.seconds:.0f} s\n\n"
            )
            file.writelines(f"{line}\n" for line in _children(report.pid))
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        _write(self.path / f"rank-{report.rank}.json", asdict(report))

    def reports(self) -> dict[int, StallReport]:
        """The reports that are there, by rank."""
        found = {}
        for path in sorted(self.path.glob("rank-*.json")):
            with suppress(OSError, ValueError, TypeError, KeyError):
                report = StallReport(**json.loads(path.read_bytes()))
                found[report.rank] = report
        return found

    def decide(self, verdict: Verdict) -> None:
        """Tell the others."""
        _write(self.path / _VERDICT, asdict(verdict))

    @property
    def verdict(self) -> Verdict | None:
        """What another process has decided, if one has."""
        with suppress(OSError, ValueError, TypeError):
            return Verdict(**json.loads((self.path / _VERDICT).read_bytes()))
        return None


def verdict_of(
    reports: Mapping[int, StallReport],
    hosts: Sequence[str],
    *,
    asker: int,
    stacks: Path,
    states: Mapping[int, str],
) -> Verdict:
    """Who holds up the others, from the reports that came; ``hosts`` are those of all ranks.

    ``states`` says of silent ranks what the system of their machine does, where it is known.
    """
    silent = [rank for rank in range(len(hosts)) if rank not in reports]
    where = f"the stacks of {_named(sorted(reports))} are in {stacks}"
    if len(hosts) == 1:
        where = f"its stacks are in {stacks}"
    elif not silent:
        where = f"the stacks of all processes are in {stacks}"
    speaker = min(reports, default=asker)
    if silent:
        rank = silent[0]
        state = states.get(rank, "does not answer")
        others = (
            "" if len(silent) == 1 else f" (nor {'does' if len(silent) == 2 else 'do'} {_named(silent[1:])})"
        )
        told = f"Process {rank} on {hosts[rank]} {state}{others}"
        if asker in reports:
            told += (
                f", and process {asker} has been {phase_of(reports[asker])} for {_seconds(reports[asker])}"
            )
        return Verdict(sentence=f"{told}; {where}.", speaker=speaker)
    culprit = culprit_of(reports, asker=asker)
    if culprit is None:
        mine = reports[asker]
        told = (
            f"All processes have been waiting for each other for {_seconds(mine)}, process {asker} on "
            f"{mine.host} {mine.phase}, and none of them is behind: look at the network between the nodes"
        )
        return Verdict(sentence=f"{told}; {where}.", speaker=speaker)
    report = reports[culprit]
    told = f"Process {culprit} on {report.host} has been {phase_of(report)} for {_seconds(report)}"
    remedy = "look at the disk that holds the data, and at its readers; " if report.data else ""
    return Verdict(sentence=f"{told}; {remedy}{where}.", speaker=speaker)


def culprit_of(reports: Mapping[int, StallReport], *, asker: int) -> int | None:
    """The process that the others wait for: of those not in an exchange the one that has begun fewest, else
    the one in an earlier exchange than the others; None where all wait in the same."""
    busy = [report for report in reports.values() if not report.exchange]
    if busy:
        # Of equals the one that has been at it for longest, and of these the one that asked.
        return min(busy, key=lambda each: (each.exchanges, -round(each.seconds), each.rank != asker)).rank
    if len({report.exchange for report in reports.values()}) > 1:
        return min(reports.values(), key=lambda each: (each.exchange, each.rank)).rank
    return None


def phase_of(report: StallReport) -> str:
    """What a process has been doing, as in "has been ..."."""
    return f"waiting for the other processes ({report.phase})" if report.exchange else report.phase


def state_of(process: ProcessIdentity, here: ProcessIdentity) -> str | None:
    """What the system says of a silent process of this machine; None where it says nothing of use."""
    if not process.known_here(here):
        return None
    if process.has_ended(here):
        return "has ended"
    with suppress(OSError, IndexError):
        return _STATES.get(_stat_state(process.pid))
    return None


def _stat_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]


def _children(pid: int) -> list[str]:
    """A line on each process that this one has started, its readers among them: what it does, and where in
    the system it waits. Empty without Linux."""
    lines = []
    with suppress(OSError):
        for child in sorted(Path(f"/proc/{pid}/task").glob("*/children")):
            for each in child.read_text().split():
                with suppress(OSError, IndexError):
                    place = Path(f"/proc/{each}/wchan").read_text(errors="replace").strip()
                    lines.append(f"child {each}: state {_stat_state(int(each))}, waits in {place or '?'}")
    return [*lines, ""] if lines else []


def _named(ranks: Sequence[int]) -> str:
    return f"process {ranks[0]}" if len(ranks) == 1 else f"processes {rank_list(ranks)}"


def _seconds(report: StallReport) -> str:
    return f"{report.seconds:,.0f} s"


def _write(path: Path, values: dict[str, Any]) -> None:
    with written_whole(path) as file:
        file.write(json.dumps(values).encode())
