"""A thread in each process that ends the job, with stacks and a sentence, where a phase lasts too long.

The main thread may hang in C code, the disk may hang, and a process that was stopped says nothing at all: so
nothing here waits for any of them without a limit, and the end is that of the system's ``_exit``.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from distrib.errors import TimeoutReached
from distrib.runtime.directory.endings import ATTEMPT_VARIABLE, Ending, write_ending
from distrib.runtime.directory.machine import ProcessIdentity, this_process
from distrib.runtime.phases import Phase, Phases
from distrib.runtime.processes import Processes
from distrib.runtime.stall_report import ReportFolder, StallReport, Verdict, phase_of, state_of, verdict_of

STACKS: Final = "stacks"
"""The folder of a run directory with the stacks of processes that hung."""

OnEvent = Callable[[str, dict[str, Any]], None]

_TICK_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 2.0
"""How often each process looks for the request of another: one listing of a folder."""

_GRACE_SECONDS: Final = 10.0
"""How long reports of the others are waited for."""

_DISK_SECONDS: Final = 20.0
"""How long a disk may take for what is written at the end."""

_LINGER_SECONDS: Final = 0.5
"""How long the process that has decided stays: the others see its connections close before they read why."""

_NOTICE_SECONDS: Final = 30.0
"""A wait that is no failure yet, but worth an event."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a watchdog goes by: seconds that a phase may last, and how long it waits for what."""

    limit: float
    notice: float = _NOTICE_SECONDS
    grace: float = _GRACE_SECONDS
    advice: str = ""
    """What to do next, added to the sentence: ``go on with ...``."""


class Watchdog:
    """Watches the phases of one process. ``attempt`` is the folder for its ending, if it has a launcher.

    ``identities`` are the processes of the job by rank. ``clock``, ``leave`` and ``say`` are for tests.
    """

    def __init__(
        self,
        watch: Watch,
        phases: Phases,
        *,
        rank: int,
        identities: Sequence[ProcessIdentity],
        folder: Path,
        attempt: Path | None = None,
        on_event: OnEvent | None = None,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[int], Any] = os._exit,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._watch, self._phases = watch, phases
        self._rank, self._identities = rank, identities
        self._here = identities[rank]
        self._folder = ReportFolder(folder)
        self._attempt = attempt
        self._on_event = on_event
        self._clock, self._leave, self._say = clock, leave, say or _say
        self._stopped, self._asked, self._ending = threading.Event(), threading.Event(), threading.Event()
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._seen: Phase | None = None
        self._at, self._seconds, self._noticed = clock(), 0.0, False
        self._tick = min(_TICK_SECONDS, watch.limit / 5)
        self._thread = threading.Thread(target=self._keep_watch, daemon=True, name="watchdog")
        self._mail = threading.Thread(target=self._keep_looking, daemon=True, name="watchdog-mail")

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()
        self._mail.start()

    def stop(self) -> None:
        """Watch no more. Does not return where the job is being ended: its sentence says more than what
        the main thread has met meanwhile."""
        self._stopped.set()
        if self._ending.is_set() or self._asked.is_set():
            self._thread.join()

    def observe(self) -> float:
        """Seconds that the phase under way has lasted, as far as this process was running itself.

        One that was suspended, with all others, has not hung meanwhile.
        """
        now, phase = self._clock(), self._phases.current
        passed = min(now - self._at, max(5.0, 5 * self._tick))
        if phase is self._seen:
            self._seconds += passed
        else:
            self._seen, self._noticed = phase, False
            self._seconds = min(now - phase.since, passed)
        self._at = now
        return self._seconds

    def _keep_watch(self) -> None:
        while not self._stopped.wait(self._tick) or self._asked.is_set():
            seconds = self.observe()
            if seconds > self._watch.limit or self._asked.is_set():
                self._ending.set()
                self._end(asked=self._asked.is_set())
                return
            self._notice(seconds)

    def _notice(self, seconds: float) -> None:
        phase = self._seen
        if (
            phase is None
            or self._noticed
            or seconds < self._watch.notice
            or not (phase.data or phase.exchange)
        ):
            return
        self._noticed = True
        report = self._report(seconds)
        facts = {"rank": self._rank, "host": report.host, "phase": phase_of(report)}
        self._events.put({**facts, "seconds": round(seconds, 1)})

    def _keep_looking(self) -> None:
        """What touches the disk while all goes well, in a thread that may hang with it."""
        while not self._stopped.wait(min(_LOOK_SECONDS, 2 * self._tick)):
            if self._folder.requested:
                self._asked.set()
                return
            with suppress(queue.Empty):
                facts = self._events.get_nowait()
                if self._on_event is not None:
                    self._on_event("stall", facts)

    def _end(self, *, asked: bool) -> None:
        report = self._report(self._seconds)
        found: list[Verdict] = []
        _within(_DISK_SECONDS + 2 * self._watch.grace, lambda: found.append(self._find_out(report, asked)))
        verdict = found[0] if found else self._own_verdict(report)
        sentence = verdict.sentence
        if self._watch.advice:
            sentence = f"{sentence.removesuffix('.')}; {self._watch.advice}."
        if verdict.speaker == self._rank:
            self._say(sentence)
            if self._on_event is not None:
                tell = self._on_event
                _within(_DISK_SECONDS / 4, lambda: tell("timeout", {"reason": sentence}))
        _within(_DISK_SECONDS / 4, lambda: self._leave_ending(sentence))
        if not asked:
            time.sleep(_LINGER_SECONDS)
        self._leave(TimeoutReached.exit_code)

    def _find_out(self, report: StallReport, asked: bool) -> Verdict:
        """Ask, report, wait for the reports of the others, and decide, or hear what was decided."""
        if not asked:
            self._folder.request(report)
        self._folder.write(report)
        until = time.monotonic() + self._watch.grace * (2 if asked else 1)
        while time.monotonic() < until and self._folder.verdict is None:
            if not asked and len(self._folder.reports()) == len(self._identities):
                break
            time.sleep(0.05)
        verdict = self._folder.verdict
        reports = self._folder.reports()
        states = self._states_of_silent(reports)
        if verdict is None:
            hosts = [each.host for each in self._identities]
            verdict = verdict_of(reports, hosts, asker=self._rank, stacks=self._folder.path, states=states)
            self._folder.decide(verdict)
        self._kill_silent(reports)
        return verdict

    def _states_of_silent(self, reports: Mapping[int, StallReport]) -> dict[int, str]:
        silent = [rank for rank in range(len(self._identities)) if rank not in reports]
        states = {rank: state_of(self._identities[rank], self._here) for rank in silent}
        return {rank: state for rank, state in states.items() if state is not None}

    def _kill_silent(self, reports: Mapping[int, StallReport]) -> None:
        """A process that cannot end by itself would keep its memory and its GPU for nobody."""
        for rank, each in enumerate(self._identities):
            if rank not in reports and each.known_here(self._here) and not each.has_ended(self._here):
                with suppress(OSError):
                    os.kill(each.pid, signal.SIGKILL)

    def _own_verdict(self, report: StallReport) -> Verdict:
        return Verdict(
            sentence=(
                f"Process {self._rank} on {report.host} has been {phase_of(report)} for "
                f"{report.seconds:,.0f} s, and its stacks cannot be written to {self._folder.path}: that "
                "disk does not answer either."
            ),
            speaker=self._rank,
        )

    def _report(self, seconds: float) -> StallReport:
        phase = self._phases.current
        return StallReport(
            rank=self._rank,
            host=self._here.host,
            pid=self._here.pid,
            phase=phase.name,
            seconds=round(seconds, 1),
            data=phase.data,
            exchange=phase.exchange,
            exchanges=phase.exchanges,
        )

    def _leave_ending(self, sentence: str) -> None:
        if self._attempt is None:
            return
        ending = Ending(
            rank=self._rank,
            host=self._here.host,
            pid=self._here.pid,
            exit_code=TimeoutReached.exit_code,
            cause="timeout",
            sentence=sentence,
        )
        write_ending(self._attempt, ending)


@contextmanager
def watched(
    processes: Processes,
    run_directory: Path,
    watch: Watch,
    *,
    environ: Mapping[str, str],
    on_event: OnEvent | None = None,
) -> Iterator[None]:
    """Watch the phases of ``processes`` during the block; entered by all processes. A limit of 0: never.

    Stacks go to ``run_directory/stacks/<time>``; an ending to the folder that KETOS_ATTEMPT in ``environ``
    names. ``on_event`` hears of a "stall" (a long wait, no failure yet) and of the "timeout" that ends all.
    """
    if watch.limit <= 0:
        yield
        return
    folder = processes.on_first(lambda: _new_folder(run_directory))
    attempt = environ.get(ATTEMPT_VARIABLE)
    watchdog = Watchdog(
        watch,
        processes.phases,
        rank=processes.topology.rank,
        identities=processes.gather(this_process()),
        folder=folder,
        attempt=Path(attempt) if attempt else None,
        on_event=on_event,
    )
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
        if processes.topology.first:
            # Only if they are empty.
            with suppress(OSError):
                folder.rmdir()
                folder.parent.rmdir()


def _new_folder(run_directory: Path) -> Path:
    """A folder of its own for each start; without it nobody is told, but the run goes on."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = run_directory.absolute() / STACKS / name
    with suppress(OSError):
        folder.mkdir(parents=True)
    return folder


def _within(seconds: float, action: Callable[[], object]) -> None:
    """Do what may hang with a disk, and wait no longer than this for it."""

    def attempt() -> None:
        with suppress(OSError, RuntimeError, ValueError):
            action()

    thread = threading.Thread(target=attempt, daemon=True, name="watchdog-end")
    thread.start()
    thread.join(seconds)


def _say(sentence: str) -> None:
    """Print past Python's buffers, whose locks the main thread may hold."""
    with suppress(OSError):
        os.write(2, f"Error: {sentence}\n".encode(errors="replace"))
