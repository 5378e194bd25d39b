"""Early stopping: patience, smallest improvement, fewest epochs, perfection, and resuming."""

from __future__ import annotations

from distrib.training.stopping import EarlyStopping


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
