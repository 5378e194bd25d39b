"""Whether to start again: by why an attempt ended, within bounds, never for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.runtime.directory.endings import Ending, EndingCause
from launchers.attempts import Cause, Outcome
from launchers.retry import Decision, PastAttempt, classify, culprit, decide

_CAUSES = st.sampled_from(["memory", "preempted", "lost", "killed", "peer", "timeout", "unexpected"])


def _ending(rank: int, cause: EndingCause, code: int = 1) -> Ending:
    return Ending(rank=rank, host="n1", pid=1, exit_code=code, cause=cause, sentence=f"{cause} of {rank}")


def _decide(past: list[PastAttempt], code: int = 1, **given: object) -> Decision:
    settings = {"max_restarts": 3, "max_requeues": 100, "smaller_batch": False, "stopping": False}
    return decide(past, Outcome(code=code), **{**settings, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "endings", "cause"),
    [
        (Outcome(code=0), [], "done"),
        # The one that was hurt explains the others.
        (Outcome(code=1, codes={0: 1, 1: 1}), [_ending(0, "peer"), _ending(1, "memory")], "memory"),
        (Outcome(code=2, codes={0: 2, 1: 1}), [_ending(0, "input", 2), _ending(1, "peer")], "input"),
        (Outcome(code=1, codes={0: 1, 1: -9}), [_ending(0, "peer")], "killed"),
        (Outcome(code=1, codes={0: 1, 1: -11}), [_ending(0, "preempted")], "killed"),
        (Outcome(code=1, codes={0: 1, 1: 1}), [_ending(0, "peer"), _ending(1, "peer")], "peer"),
        (Outcome(code=143, codes={0: 143, 1: 143}), [_ending(0, "preempted", 143)], "preempted"),
        # Before the first step a signal ends a process at once.
        (Outcome(code=-15, codes={0: -15, 1: -15}), [], "preempted"),
        (Outcome(code=140), [], "preempted"),
        (Outcome(code=1, lost=("n2",)), [_ending(0, "peer")], "lost"),
        (Outcome(code=2), [], "input"),
        (Outcome(code=137), [], "killed"),
        (Outcome(code=1, cause="input", sentence="n2 has no python."), [_ending(0, "peer")], "input"),
    ],
)
def test_the_cause_is_what_explains_all_processes(
    outcome: Outcome, endings: list[Ending], cause: Cause
) -> None:
    by_rank = {ending.rank: ending for ending in endings}
    assert classify(outcome, by_rank, cancelled=False) == cause


def test_what_a_person_wanted_is_no_failure_but_what_is_done_is_done() -> None:
    assert classify(Outcome(code=143), {0: _ending(0, "preempted")}, cancelled=True) == "cancelled"
    assert classify(Outcome(code=0), {}, cancelled=True) == "done"


def test_the_sentence_is_that_of_the_first_process_with_the_cause() -> None:
    endings = {2: _ending(2, "memory"), 1: _ending(1, "memory"), 0: _ending(0, "peer")}
    found = culprit("memory", endings)
    assert found is not None
    assert found.sentence == "memory of 1"
    assert culprit("killed", endings) is None


@pytest.mark.parametrize(
    ("cause", "code", "action", "exit_code"),
    [
        ("done", 0, "end", 0),
        ("input", 2, "end", 2),
        ("run", 1, "end", 1),
        ("cancelled", 143, "end", 130),
        ("memory", 1, "end", 1),
        ("killed", 1, "restart", 0),
        ("peer", 1, "restart", 0),
        ("timeout", 1, "restart", 0),
        ("unexpected", 1, "restart", 0),
        ("lost", 1, "restart", 0),
        ("preempted", 143, "requeue", 0),
    ],
)
def test_each_cause_has_its_answer(cause: Cause, code: int, action: str, exit_code: int) -> None:
    decision = _decide([PastAttempt(number=1, cause=cause)], code)
    assert (decision.action, decision.code) == (action, exit_code)


def test_a_smaller_batch_is_worth_another_attempt() -> None:
    assert _decide([PastAttempt(number=1, cause="memory")], smaller_batch=True).action == "restart"


def test_an_agent_that_was_told_to_end_starts_nothing_in_its_place() -> None:
    past = [PastAttempt(number=1, cause="killed")]
    assert _decide(past, stopping=True).action == "requeue"


@given(causes=st.lists(_CAUSES, min_size=1, max_size=200), restarts=st.integers(0, 5))
def test_failures_are_answered_as_often_as_allowed_and_no_more(causes: list[Cause], restarts: int) -> None:
    """A run that fails for good must not fill a night, one that is preempted must not use up its restarts."""
    past = [PastAttempt(number=n, cause=cause, step=n) for n, cause in enumerate(causes, start=1)]
    decision = _decide(past, max_restarts=restarts, smaller_batch=True)
    failures = sum(cause not in ("memory", "preempted", "lost") for cause in causes)
    if causes[-1] in ("memory",):
        assert decision.action == "restart"
    elif causes[-1] in ("preempted", "lost"):
        free = sum(cause in ("preempted", "lost") for cause in causes)
        assert (decision.action == "end") == (free > 100)
    else:
        assert (decision.action == "end") == (failures > restarts)


def test_preemptions_that_achieve_nothing_have_an_end() -> None:
    """A job that is preempted before each first save would otherwise be queued for ever."""
    past = [PastAttempt(number=n, cause="preempted", step=40) for n in range(1, 6)]
    assert _decide(past, 143).action == "requeue"
    past.append(PastAttempt(number=6, cause="preempted", step=40))
    assert _decide(past, 143).action == "end"
    past[-1] = PastAttempt(number=6, cause="preempted", step=41)
    assert _decide(past, 143).action == "requeue"
