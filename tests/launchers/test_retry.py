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
        # Who meets the end of another may take it for an error of its own, and give up waiting for it.
        (Outcome(code=1, lost=("n2",)), [_ending(0, "run")], "lost"),
        (Outcome(code=1, lost=("n2",)), [_ending(0, "timeout"), _ending(1, "unexpected")], "lost"),
        (Outcome(code=1, codes={0: 1, 1: -9}), [_ending(0, "run")], "killed"),
        (Outcome(code=1, codes={0: 1, 1: 137}), [_ending(0, "unexpected")], "killed"),
        (Outcome(code=1, codes={0: 1, 1: -15}), [_ending(0, "run")], "run"),
        (Outcome(code=2, codes={0: 2, 1: -9}), [_ending(0, "input", 2)], "input"),
        (Outcome(code=1, codes={0: 1, 1: -9}), [_ending(0, "memory")], "memory"),
        (Outcome(code=2, codes={0: 2, 1: 2}), [_ending(0, "busy", 2), _ending(1, "peer", 2)], "busy"),
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


@pytest.mark.parametrize(
    ("codes", "endings", "begun", "cause"),
    [
        ({0: 1, 1: 1}, [], False, "input"),
        # The first that ended has the others told to.
        ({0: -15, 1: 1, 2: 143}, [], False, "input"),
        ({0: 1, 1: 1}, [], True, "killed"),
        ({0: 1, 1: -11}, [], False, "killed"),
        ({0: 1, 1: -9}, [], False, "killed"),
        ({0: 1, 1: 1}, [_ending(0, "peer")], False, "killed"),
        ({}, [], False, "killed"),
    ],
)
def test_a_program_that_cannot_be_started_is_not_started_again(
    codes: dict[int, int], endings: list[Ending], begun: bool, cause: Cause
) -> None:
    """Broken: a Python without this package is tried as often as --max-restarts says."""
    by_rank = {ending.rank: ending for ending in endings}
    assert classify(Outcome(code=1, codes=codes), by_rank, cancelled=False, begun=begun) == cause


def test_what_a_person_wanted_is_no_failure_but_what_is_done_is_done() -> None:
    assert classify(Outcome(code=143), {0: _ending(0, "preempted")}, cancelled=True) == "cancelled"
    assert classify(Outcome(code=0), {}, cancelled=True) == "done"


def test_the_sentence_is_that_of_the_first_process_with_the_cause() -> None:
    endings = {2: _ending(2, "memory"), 1: _ending(1, "memory"), 0: _ending(0, "peer")}
    found = culprit("memory", endings)
    assert found is not None
    assert found.sentence == "memory of 1"
    assert culprit("killed", endings) is None
    hung = culprit("killed", {**endings, 3: _ending(3, "timeout")})
    assert hung is not None
    assert hung.sentence == "timeout of 3"


@pytest.mark.parametrize(
    ("cause", "code", "action", "exit_code"),
    [
        ("done", 0, "end", 0),
        ("input", 2, "end", 2),
        ("run", 1, "end", 1),
        ("cancelled", 143, "end", 130),
        ("time", 143, "end", 1),
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


def test_a_directory_in_use_is_waited_for_but_not_for_ever() -> None:
    """Broken: a process that still saves ends the run after it, or one that stays keeps it starting."""
    past = [PastAttempt(number=n, cause="busy") for n in range(1, 12)]
    decision = _decide(past, 2, max_restarts=0)
    assert (decision.action, decision.pause) == ("restart", 10.0)
    past.append(PastAttempt(number=12, cause="busy"))
    ended = _decide(past, 2)
    assert (ended.action, ended.code) == ("end", 2)
    past[5] = PastAttempt(number=6, cause="lost")
    assert _decide(past, 2).action == "restart"
    assert _decide(past[:3], 2, stopping=True).action == "requeue"


def test_a_directory_in_use_is_no_failure() -> None:
    past = [PastAttempt(number=n, cause="busy") for n in range(1, 9)]
    past.append(PastAttempt(number=9, cause="killed"))
    assert _decide(past, max_restarts=1).action == "restart"
    assert _decide(past, max_restarts=1).pause == 0
    # Nor does it break the row of those that come no step further.
    past = [PastAttempt(number=n, cause="busy" if n % 2 else "preempted", step=40) for n in range(1, 13)]
    assert _decide(past, 143).action == "end"


def test_preemptions_that_achieve_nothing_have_an_end() -> None:
    """A job that is preempted before each first save would otherwise be queued for ever."""
    past = [PastAttempt(number=n, cause="preempted", step=40) for n in range(1, 6)]
    assert _decide(past, 143).action == "requeue"
    past.append(PastAttempt(number=6, cause="preempted", step=40))
    assert _decide(past, 143).action == "end"
    past[-1] = PastAttempt(number=6, cause="preempted", step=41)
    assert _decide(past, 143).action == "requeue"
