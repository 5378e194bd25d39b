"""Whether to start again, by why an attempt ended. Pure: histories in, decisions out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from distrib.runtime.directory.endings import Ending, EndingCause
from launchers.attempts import Cause, Outcome

FREE: Final[tuple[Cause, ...]] = ("preempted", "lost")
"""Not the run's fault: such attempts have a bound of their own."""
_AGAIN: Final[tuple[Cause, ...]] = ("killed", "peer", "timeout", "unexpected")
_WITHOUT_PROGRESS: Final = 5
"""Attempts in a row that cost nothing and achieve nothing, after which it is no use."""
_MOST_BUSY: Final = 12
_BUSY_PAUSE: Final = 10.0
"""Attempts in a row, and seconds before each, for another process to save and let go of the run directory."""

# A process that was hurt explains those that only noticed: the first of these that one of them names counts.
_WEIGHT: Final[tuple[EndingCause, ...]] = (
    "input",
    "busy",
    "memory",
    "run",
    "timeout",
    "unexpected",
    "preempted",
    "peer",
)
_MENDED_BY_HAND: Final = ("input", "busy", "memory")
"""What is said by the process that it happened to, and by none that only met the end of another."""
_SIGNALS_TO_SAVE: Final = (10, 12, 15)
_KILLED: Final = (-9, 128 + 9)

Action = Literal["end", "restart", "requeue"]


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """An attempt that has ended; ``step`` is the last global step that had been saved by then."""

    number: int
    cause: Cause
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do next, and with which exit code where it is the end; ``reason`` says why in a few words,
    ``pause`` is how many seconds must pass before another attempt."""

    action: Action
    code: int = 0
    reason: str = ""
    pause: float = 0.0


def classify(
    outcome: Outcome, endings: Mapping[int, Ending], *, cancelled: bool, begun: bool = True
) -> Cause:
    """Why an attempt ended, from what its target saw, what its processes left, and whether it was wanted.

    ``begun`` says that an attempt of this launch, this one or another, has got as far as to start its
    command: then the program can be started, and an exit without a word was an accident.
    """
    if outcome.code == 0:
        return "done"
    if cancelled:
        return "cancelled"
    if outcome.cause is not None:
        return outcome.cause
    named = {ending.cause for ending in endings.values()}
    grave = [cause for cause in _WEIGHT[: _WEIGHT.index("preempted")] if cause in named]
    if grave and grave[0] in _MENDED_BY_HAND:
        return grave[0]
    # Who meets the end of another in the midst of something may take it for an error of its own.
    if outcome.lost:
        return "lost"
    silent = {rank: code for rank, code in outcome.codes.items() if rank not in endings}
    if any(code in _KILLED for code in silent.values()):
        return "killed"
    if grave:
        return grave[0]
    if any(code < 0 and -code not in _SIGNALS_TO_SAVE for code in silent.values()):
        return "killed"
    if "preempted" in named or _asked_to_end(outcome.code):
        return "preempted"
    if 2 in silent.values() or (not endings and outcome.code == 2):
        return "input"
    if not begun and not endings and _never_ran(silent.values()):
        return "input"
    return "peer" if "peer" in named and not silent else "killed"


def _never_ran(codes: Collection[int]) -> bool:
    """Whether all processes ended by themselves as Python does that cannot run a program, but for those that
    were told to end on account of the others."""
    return 1 in codes and all(code == 1 or _asked_to_end(code) for code in codes)


def _asked_to_end(code: int) -> bool:
    return code in (*(-number for number in _SIGNALS_TO_SAVE), *(128 + number for number in _SIGNALS_TO_SAVE))


def culprit(cause: Cause, endings: Mapping[int, Ending]) -> Ending | None:
    """The ending whose sentence explains the attempt: the lowest rank that names the cause.

    A process that hung is killed in the end, and it is those that waited for it who can say so.
    """
    wanted = "timeout" if cause == "killed" else cause
    if wanted not in get_args(EndingCause):
        return None
    return next((endings[rank] for rank in sorted(endings) if endings[rank].cause == wanted), None)


def decide(
    past: Sequence[PastAttempt],
    outcome: Outcome,
    *,
    max_restarts: int,
    max_requeues: int,
    smaller_batch: bool,
    stopping: bool,
) -> Decision:
    """What follows the last of the ``past`` attempts, whose outcome this is.

    ``smaller_batch`` says that the micro-batch can and may be made smaller, ``stopping`` that the agent
    itself was told to end, so that nothing can be started in its place.
    """
    last = past[-1]
    code = outcome.code if 0 < outcome.code < 128 else 1
    if last.cause == "done":
        return Decision(action="end")
    if last.cause == "cancelled":
        return Decision(action="end", code=130, reason="it was cancelled")
    if last.cause == "input":
        return Decision(action="end", code=2, reason="the input has to be mended first")
    if last.cause == "busy":
        return _busy(past, stopping)
    if last.cause == "time":
        return Decision(action="end", code=1)
    if last.cause == "run":
        return Decision(action="end", code=code, reason="it would fail again")
    if last.cause == "memory" and not smaller_batch:
        return Decision(
            action="end", code=1, reason="it would fail again; a smaller -B may help (--auto-batch)"
        )
    if last.cause in FREE:
        return _free(past, max_requeues, stopping)
    if last.cause in _AGAIN:
        failures = sum(each.cause in _AGAIN for each in past)
        if failures > max_restarts:
            return Decision(action="end", code=1, reason=f"--max-restarts {max_restarts} are used up")
    if stopping:
        return Decision(action="requeue", reason="this job was told to end")
    return Decision(action="restart")


def _busy(past: Sequence[PastAttempt], stopping: bool) -> Decision:
    """No failure of the run: who has the directory may be saving, and about to end."""
    if len(past) >= _MOST_BUSY and all(each.cause == "busy" for each in past[-_MOST_BUSY:]):
        return Decision(
            action="end", code=2, reason=f"{_MOST_BUSY} attempts in a row have found its directory in use"
        )
    if stopping:
        return Decision(action="requeue", reason="this job was told to end")
    return Decision(action="restart", reason="another process may be about to end", pause=_BUSY_PAUSE)


def _free(past: Sequence[PastAttempt], max_requeues: int, stopping: bool) -> Decision:
    if sum(each.cause in FREE for each in past) > max_requeues:
        return Decision(action="end", code=1, reason=f"--max-requeues {max_requeues} are used up")
    recent = [each for each in past if each.cause != "busy"][-_WITHOUT_PROGRESS - 1 :]
    if len(recent) > _WITHOUT_PROGRESS and all(
        each.cause in FREE and each.step == recent[0].step for each in recent
    ):
        return Decision(
            action="end", code=1, reason=f"{_WITHOUT_PROGRESS} attempts in a row have come no step further"
        )
    return Decision(action="requeue" if stopping or past[-1].cause == "preempted" else "restart")
