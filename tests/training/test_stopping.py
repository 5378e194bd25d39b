"""Early stopping and annealing: patience, smallest improvement, fewest epochs, perfection, resuming."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distrib.training.stopping import Annealing, EarlyStopping


def _stops_at(scores: list[float], **settings: float) -> int | None:
    stopping = EarlyStopping(**({"lag": 3, "min_delta": 0.0, "min_epochs": 0} | settings))
    for epoch, score in enumerate(scores, start=1):
        if stopping.update(score, epochs_done=epoch):
            return epoch
    return None


def test_stops_after_lag_validations_without_improvement() -> None:
    assert _stops_at([0.5, 0.6, 0.6, 0.55, 0.6, 0.9]) == 5


def test_an_improvement_starts_the_count_anew() -> None:
    assert _stops_at([0.5, 0.5, 0.5, 0.6, 0.6, 0.6]) is None


def test_improvements_up_to_min_delta_do_not_count() -> None:
    assert _stops_at([0.5, 0.505, 0.508, 0.51], min_delta=0.01) == 4


def test_never_before_min_epochs() -> None:
    assert _stops_at([1.0] * 6, min_epochs=5) == 5


def test_a_perfect_score_stops_at_once() -> None:
    assert _stops_at([0.9, 1.0, 1.0]) == 2


def test_counters_continue_after_a_resume() -> None:
    before = EarlyStopping(lag=3, min_delta=0.0, min_epochs=0)
    for epoch in (1, 2, 3):
        before.update(0.5, epochs_done=epoch)
    after = EarlyStopping(lag=3, min_delta=0.0, min_epochs=0)
    after.load_state_dict(before.state_dict())
    assert after.update(0.5, epochs_done=4)


def _annealing(**settings: float) -> Annealing:
    return Annealing(**({"lag": 2, "min_delta": 0.0, "min_epochs": 0} | settings))


def _anneals_until(scores: list[float], **settings: float) -> tuple[int | None, int | None]:
    """The epochs with whose validation the cooling begins and the training ends."""
    stopping, begun = _annealing(**settings), None
    for epoch, score in enumerate(scores, start=1):
        stopping.note(position=epoch, rate=1.0)
        if stopping.update(score, epochs_done=epoch):
            return begun, epoch
        if begun is None and stopping.cooled is not None:
            begun = epoch
    return begun, None


def test_aneal_cools_for_lag_validations_and_then_stops() -> None:
    assert _anneals_until([0.5] * 9) == (3, 5)


def test_an_improvement_before_the_cooling_puts_it_off() -> None:
    assert _anneals_until([0.5, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6]) == (5, 7)


def test_improvements_while_cooling_do_not_stop_it() -> None:
    assert _anneals_until([0.5, 0.5, 0.5, 0.8, 0.9, 0.95]) == (3, 5)


def test_aneal_counts_improvements_as_min_delta_says() -> None:
    assert _anneals_until([0.5, 0.505, 0.509, 0.5, 0.5], min_delta=0.01) == (3, 5)


def test_aneal_does_not_cool_before_min_epochs() -> None:
    """It would go on for many epochs at the lowest rate."""
    assert _anneals_until([0.5] * 20, min_epochs=10) == (10, 12)


def test_at_100_percent_aneal_stops_without_cooling_but_not_before_min_epochs() -> None:
    assert _anneals_until([0.5, 1.0, 1.0]) == (None, 2)
    assert _anneals_until([0.5, 1.0, 1.0, 1.0, 1.0], min_epochs=4) == (None, 4)


def test_the_cooling_is_shared_out_by_position() -> None:
    stopping = _annealing()
    for epoch, rate in ((1, 0.3), (2, 0.2), (3, 0.1), (4, 0.05)):
        stopping.note(position=float(epoch), rate=rate)
        stopping.update(0.5, epochs_done=epoch)
    # Two validations half an epoch apart, from where the score was found to have stalled.
    shares = [stopping.cooling(position=at, interval=0.5) for at in (2.9, 3.0, 3.25, 4.0, 9.0)]
    assert shares == [(0.1, 0.0), (0.1, 0.0), (0.1, 0.25), (0.1, 1.0), (0.1, 1.0)]


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=30), cut=st.integers(0, 30))
def test_aneal_goes_on_from_a_checkpoint_as_if_never_stopped(scores: list[float], cut: int) -> None:
    def judge(stopping: Annealing, first: int, last: int) -> list[bool]:
        judged = []
        for epoch, score in list(enumerate(scores, start=1))[first:last]:
            stopping.note(position=epoch, rate=1 / epoch)
            judged.append(stopping.update(score, epochs_done=epoch))
        return judged

    whole, before, after = _annealing(), _annealing(), _annealing()
    expected = judge(whole, 0, 30)
    judge(before, 0, cut)
    after.load_state_dict(before.state_dict())
    assert judge(after, cut, 30) == expected[cut:]
    assert after == whole


def test_aneal_takes_over_from_early_stopping_and_back() -> None:
    """--quit may be another one when a run goes on."""
    early = EarlyStopping(lag=3, min_delta=0.0, min_epochs=0, best=0.7, waited=1)
    annealing = _annealing(lag=3)
    annealing.load_state_dict(early.state_dict())
    assert (annealing.best, annealing.waited, annealing.cooled) == (0.7, 1, None)
    early.load_state_dict(annealing.state_dict())
    assert (early.best, early.waited) == (0.7, 1)
