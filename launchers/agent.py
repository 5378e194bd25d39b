"""The agent of a run: beside its processes, it makes one attempt after the other until there is an end.

The same for every target: what differs is how the processes of an attempt are started and watched, which a
target gives as ``start``. The agent holds a lease on the launch, so that a job that its scheduler runs twice
trains once; all that it decides stands in ``events.jsonl``.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from distrib.errors import InputError, KetosError, RunError
from distrib.files import write_error
from distrib.runtime.directory.endings import read_endings
from distrib.runtime.directory.events import EVENTS, EventLog
from distrib.runtime.directory.lease import Lease
from distrib.runtime.directory.lease_file import lease_in_force
from launchers.attempts import Attempt, Outcome
from launchers.following import last_line
from launchers.history import History, read_history
from launchers.micro_batch import batch_words, smaller_batch
from launchers.places import last_attempt, launch_folder
from launchers.plan import RESUMING, LaunchPlan
from launchers.retry import Decision, PastAttempt, classify, culprit, decide
from launchers.stop import TAKEN_OVER, StopRequest, heeding_signals

Start = Callable[[Attempt, StopRequest], Outcome]
"""Starts all processes of an attempt and returns when none is left; looks once a second whether to stop."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LONGEST_PAUSE = 30.0
_NO_FAILURE = ("preempted", "lost", "memory", "busy")
_BEAT = 4.0
"""Seconds between signs of life: three missed ones, and a job started anew takes over."""


def run_attempts(
    plan: LaunchPlan,
    start: Start,
    *,
    requeue: Callable[[], None] | None = None,
    job: str | None = None,
    wait_for_other: bool = False,
    followed: bool = False,
    echo: Callable[[str], None] = print,
) -> int:
    """Attempts until the command is done or it is no use; the exit code for whoever has started this.

    ``requeue`` gives the job back to its scheduler, which starts a new agent later; without it attempts that
    were preempted are made again in place. ``job`` is the scheduler's name of this job. An agent that finds
    another at work refuses, or with ``wait_for_other`` waits until that one has ended. ``followed`` says that
    what rank zero prints is shown anyway, so that its last sentence needs no repeating.

    Raises InputError where another agent is at work, KetosError where the run directory is of no use.
    """
    stop = StopRequest(plan.run_dir)
    with heeding_signals(stop, *_SIGNALS), _alone(plan, stop, wait=wait_for_other, echo=echo) as lease:
        stop.lease = lease
        agent = _Agent(plan, start, requeue=requeue, job=job, stop=stop, echo=echo, followed=followed)
        while True:
            code = agent.next()
            if code is not None:
                return code


class _Agent:
    """The state of a launch between two attempts is its history alone, read anew each time."""

    def __init__(
        self,
        plan: LaunchPlan,
        start: Start,
        *,
        requeue: Callable[[], None] | None,
        job: str | None,
        stop: StopRequest,
        echo: Callable[[str], None],
        followed: bool,
    ) -> None:
        self._plan, self._start, self._requeue, self._job = plan, start, requeue, job
        self._stop, self._echo, self._followed = stop, echo, followed
        self._events = EventLog(plan.run_dir / EVENTS)

    def next(self) -> int | None:
        """Make an attempt; the exit code where none is to follow."""
        history = read_history(self._plan.run_dir)
        if history.end is not None:
            return int(history.end.end.get("code", 1))
        number = max(history.numbered, last_attempt(self._plan.run_dir)) + 1
        attempt = Attempt.of(self._plan, number, *self._overrides(history))
        self._events.append(
            "attempt",
            attempt=attempt.number,
            target=self._plan.target,
            job=self._job,
            host=os.uname().nodename,
            nodes=self._plan.options.nodes,
            processes=self._plan.processes,
        )
        try:
            if not self._events.flush():  # without a record there would be no bound
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            attempt.folder.mkdir(parents=True)
        except OSError as error:
            raise write_error(attempt.folder, error) from error
        began = time.monotonic()
        outcome = self._outcome(attempt)
        return self._settle(attempt, outcome, time.monotonic() - began)

    def _outcome(self, attempt: Attempt) -> Outcome:
        if self._stop.reason is not None:
            return Outcome(code=130, cause="preempted", sentence="it was told to end before it began")
        try:
            return self._start(attempt, self._stop)
        except InputError as error:
            return Outcome(code=error.exit_code, cause="input", sentence=str(error))
        except KetosError as error:
            return Outcome(code=error.exit_code, cause="run", sentence=str(error))

    def _settle(self, attempt: Attempt, outcome: Outcome, seconds: float) -> int | None:
        """Put on record how it came out, and do what follows from that."""
        if self._stop.reason == TAKEN_OVER:
            raise RunError(f"{self._plan.run_dir}: another agent has taken this run over; this one ends.")
        endings = read_endings(attempt.folder)
        cancelled = self._stop.cancelled or self._stop.signal == signal.SIGINT
        history = read_history(self._plan.run_dir)
        cause = classify(outcome, endings, cancelled=cancelled, begun=history.begun)
        # Its end is not on record yet: what has been saved counts as its own.
        past = [*history.past()[:-1], PastAttempt(number=attempt.number, cause=cause, step=history.step)]
        if self._plan.command not in RESUMING:  # these say nothing of how far they come
            past = [dataclasses.replace(each, step=each.number) for each in past]
        options = self._plan.options
        batch = smaller_batch(self._plan, history.batch) if cause == "memory" and options.auto_batch else None
        decision = decide(
            past,
            outcome,
            max_restarts=options.max_restarts,
            max_requeues=options.max_requeues,
            smaller_batch=batch is not None,
            stopping=self._stop.signal is not None,
        )
        decision = self._possible(decision)
        if batch is not None:
            self._events.append("smaller_batch", **batch)
        guilty = culprit(cause, endings)
        sentence = outcome.sentence or _sentence_of(attempt, outcome, cause)
        if guilty is not None and outcome.cause is None:
            sentence = guilty.sentence
        self._events.append(
            "attempt_end",
            attempt=attempt.number,
            cause=cause,
            decision=decision.action,
            code=decision.code,
            reason=decision.reason,
            sentence=sentence,
            seconds=round(seconds, 1),
            codes={str(rank): code for rank, code in outcome.codes.items()},
            lost=list(outcome.lost),
            nodes=outcome.nodes,
            processes=outcome.processes,
        )
        seen = self._followed and guilty is not None and guilty.rank == 0
        return self._follow(decision, cause, "" if seen else sentence, past)

    def _possible(self, decision: Decision) -> Decision:
        """A requeue where there is a queue; else another attempt, or the end of an agent that was told to."""
        if decision.action != "requeue" or self._requeue is not None:
            return decision
        if self._stop.signal is not None:
            return Decision(action="end", code=128 + self._stop.signal, reason="this process was told to end")
        return dataclasses.replace(decision, action="restart")

    def _follow(self, decision: Decision, cause: str, sentence: str, past: list[PastAttempt]) -> int | None:
        if cause == "done":
            return 0
        told = f"attempt {past[-1].number} ({cause})" + (f": {sentence}" if sentence else ".")
        if decision.action == "end":
            if sentence or cause not in ("input", "run"):
                why = f" Not started again: {decision.reason}." if decision.reason else ""
                self._echo(f"{told}{why}")
            return decision.code
        if decision.action == "requeue" and self._requeue is not None:
            self._echo(f"{told} The job is queued again.")
            self._requeue()
            return 0
        self._echo(f"{told} Starting again.")
        self._pause(max(decision.pause, _pause_after(past)))
        return None

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._stop.reason is None:
            time.sleep(0.2)

    def _overrides(self, history: History) -> list[str]:
        """Options that this attempt has and the experiment has not: what only begins a run, and a smaller
        micro-batch."""
        if self._plan.command not in RESUMING:
            return []
        first = [] if history.saved else list(self._plan.first)
        return [*first, *batch_words(self._plan, history.batch)]


def _pause_after(past: Sequence[PastAttempt]) -> float:
    """Seconds before another attempt: failures that come quickly must not fill a night with starts."""
    failures = sum(each.cause not in _NO_FAILURE for each in past)
    return min(2.0 ** (failures - 1), _LONGEST_PAUSE) if failures > 1 else 0.0


def _sentence_of(attempt: Attempt, outcome: Outcome, cause: str) -> str:
    """What can be said of processes that left no word themselves."""
    if cause == "done":
        return ""
    if outcome.lost:
        return f"{', '.join(outcome.lost)} went away."
    for rank, code in sorted(outcome.codes.items()):
        if code < 0 and cause == "killed":
            return (
                f"Process {rank} was ended by {signal.Signals(-code).name}; its log is {attempt.log(rank)}."
            )
    if cause == "input":
        rank = min((rank for rank, code in outcome.codes.items() if code in (1, 2)), default=0)
        return f"Process {rank} could not begin: {last_line(attempt.log(rank))}"
    if cause in ("preempted", "cancelled"):
        return "It was told to end."
    if outcome.code < 0:
        return f"It was ended by {signal.Signals(-outcome.code).name}; its logs are in {attempt.folder}."
    return f"It ended with exit code {outcome.code}; its logs are in {attempt.folder}."


@contextmanager
def _alone(
    plan: LaunchPlan, stop: StopRequest, *, wait: bool, echo: Callable[[str], None]
) -> Iterator[Lease]:
    """Hold the lease of the launch; one of an agent that gives no sign of life is taken over."""
    folder = launch_folder(plan.run_dir)
    told = False
    while True:
        try:
            lease = Lease.acquire(folder, steal=True, environ=os.environ, interval=_BEAT)
            break
        except InputError as error:
            found = lease_in_force(folder)
            if found is None or found.holder is None:
                raise InputError(str(error)) from None
            other = found.holder
            who = f"process {other.process.pid} on host {other.process.host}"
            who += f", job {other.job}" if other.job else ""
            if not wait:
                raise InputError(
                    f"{plan.run_dir}: is being run already ({who}); see `ketos launch status "
                    f"{plan.run_dir}`, or end it with `ketos launch cancel`."
                ) from None
            if stop.reason is not None:
                raise RunError(f"Told to end while another agent ({who}) was at work on this run.") from None
            if not told:
                echo(f"Another agent is at work on this run ({who}); waiting for its end.")
            told = True
            time.sleep(1.0)
    with lease:
        yield lease
