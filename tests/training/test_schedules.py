"""Learning rates: closed forms, torch's own schedules, boundaries, warm-up, resuming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distrib.config.learning import Learning, Pretrain, Train
from distrib.errors import InputError
from distrib.training.schedules import (
    LearningRates,
    Place,
    base_rate,
    check_rates,
    steps_between_validations,
)

# Torch's schedules are walked without optimizer steps, of which they ask only this.
pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning")

SCHEDULES = ("constant", "1cycle", "exponential", "step", "reduceonplateau", "cosine", "cosine_warm_restarts")


def _options(**given: Any) -> Train:
    return Train(**{"lrate": 0.01, "epochs": 12, **given})


def _rates(options: Learning, unit: Any = "steps") -> LearningRates:
    return LearningRates(options, base=options.lrate, warmup_unit=unit)


def _place(number: int, steps: int, *, lines: int = 0) -> Place:
    return Place(
        epoch=number // steps, step=number % steps, steps=steps, number=number, samples=number * lines
    )


def _walk(options: Learning, *, steps: int, epochs: int) -> list[float]:
    rates = _rates(options)
    return [rates.rate(_place(number, steps)) for number in range(steps * epochs)]


def _torch_optimizer(lrate: float, **settings: Any) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lrate, **settings)


def test_constant_stays() -> None:
    assert set(_walk(_options(), steps=7, epochs=3)) == {0.01}


@pytest.mark.parametrize(
    ("freq", "steps"), [(1.0, 7), (2.0, 5), (0.5, 10), (0.25, 1000), (1 / 3, 1000), (0.3, 10)]
)
def test_step_drops_with_the_first_step_after_the_validation(freq: float, steps: int) -> None:
    """A drop a step off would train between a validation and the next at a rate nobody asked for."""
    options = _options(schedule="step", step_size=2, gamma=0.5, freq=freq)
    rates, each = _rates(options), steps_between_validations(freq, steps)
    validations = 0
    for number in range(steps * 5):
        assert rates.rate(_place(number, steps)) == pytest.approx(0.01 * 0.5 ** (validations // 2))
        # As validations come: every so many steps of an epoch, or after every so many epochs.
        done = number % steps + 1 if freq < 1 else number + 1
        validations += done % each == 0


def test_validations_over_the_asked_for_do_not_count() -> None:
    """11 steps with --freq 0.25 leave room for five validations; counted are four, in every epoch."""
    options = _options(schedule="step", step_size=4, gamma=0.5, freq=0.25)
    rates = _walk(options, steps=11, epochs=3)
    assert [number for number in range(1, 33) if rates[number] < rates[number - 1]] == [8, 19, 30]


@pytest.mark.parametrize(("freq", "per_epoch"), [(1.0, 1.0), (2.0, 0.5), (0.25, 4.0)])
def test_exponential_is_smooth_and_meets_step_at_its_drops(freq: float, per_epoch: float) -> None:
    found = _walk(_options(schedule="exponential", step_size=3, gamma=0.2, freq=freq), steps=8, epochs=6)
    for number, rate in enumerate(found):
        assert rate == pytest.approx(0.01 * 0.2 ** (number / 8 * per_epoch / 3))


def test_cosine_falls_to_its_minimum_and_stays_there() -> None:
    """torch's class would rise again after the minimum."""
    options = _options(schedule="cosine", cos_t_max=4, cos_min_lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(_torch_optimizer(0.01), T_max=20, eta_min=1e-4)
    found = _walk(options, steps=5, epochs=6)
    for rate in found[:20]:
        assert rate == pytest.approx(theirs.get_last_lr()[0])
        theirs.step()
    assert found[20:] == [1e-4] * 10


def test_warm_restarts_are_torchs() -> None:
    options = _options(schedule="cosine_warm_restarts", cos_t_max=3, cos_min_lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(_torch_optimizer(0.01), T_0=3, eta_min=1e-4)
    found = _walk(options, steps=7, epochs=7)
    for number, rate in enumerate(found):
        theirs.step(number // 7 + number % 7 / 7)
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
    assert found[21] == found[42] == 0.01, "it starts at the top again exactly with the epoch"


@pytest.mark.parametrize(("steps", "epochs"), [(7, 9), (1, 10), (3, 1), (1, 1), (10, 1), (50, 3)])
def test_one_cycle_is_torchs(steps: int, epochs: int) -> None:
    """Learning rate and momentum, from the first step to the last, whatever the cycle's length."""
    options = _options(schedule="1cycle", epochs=epochs)
    optimizer = _torch_optimizer(0.01, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, epochs=epochs, steps_per_epoch=steps)
    rates = _rates(options)
    for number in range(steps * epochs):
        if number:
            theirs.step()
        place = _place(number, steps)
        assert rates.rate(place) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        assert rates.momentum(place) == pytest.approx(optimizer.param_groups[0]["momentum"])
    after = _place(steps * epochs + 3, steps)
    assert rates.rate(after) == pytest.approx(0.01 / 25 / 1e4), "and there it stays"


def test_only_one_cycle_moves_the_momentum() -> None:
    for schedule in SCHEDULES:
        momentum = _rates(_options(schedule=schedule)).momentum(_place(5, 10))
        assert (momentum == 0.9) == (schedule != "1cycle")


@given(
    scores=st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.50004, 0.5001, 0.7, 0.9]), max_size=40),
    patience=st.integers(0, 4),
    gamma=st.sampled_from([0.1, 0.5]),
    lrate=st.sampled_from([1e-2, 1e-6]),
)
@settings(deadline=None, max_examples=60)
def test_reduceonplateau_is_torchs(scores: list[float], patience: int, gamma: float, lrate: float) -> None:
    rates = _rates(_options(schedule="reduceonplateau", rop_patience=patience, gamma=gamma, lrate=lrate))
    optimizer = _torch_optimizer(lrate)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=gamma, patience=patience
    )
    for number, score in enumerate(scores, start=1):
        rates.validated(score, _place(number * 4, 4))
        theirs.step(score)
        assert rates.rate(_place(number * 4, 4)) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_of_scores_below_zero_only_better_ones_are_improvements() -> None:
    """A score such as a negative loss that gets slowly worse must not count as getting better."""
    rates = _rates(_options(schedule="reduceonplateau", rop_patience=1, gamma=0.1))
    for number in range(4):
        rates.validated(-2.0 - number * 1e-5, _place(number, 1))
    assert rates.rate(_place(4, 1)) == pytest.approx(0.001)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("unit", ["steps", "samples"])
def test_warm_up_multiplies_what_the_schedule_says(schedule: str, unit: str) -> None:
    """The first step learns, the last one of the warm-up has all of the schedule's rate, no step jumps."""
    warmup = 20 if unit == "steps" else 20 * 3
    options = _options(schedule=schedule, warmup=warmup)
    warm, plain = _rates(options, unit), _rates(replace(options, warmup=0), unit)
    for number in range(60):
        place = _place(number, 10, lines=3)
        done = number if unit == "steps" else number * 3
        share = warm.rate(place) / plain.rate(place)
        assert share == pytest.approx(min(1.0, (done + 1) / warmup))
    assert warm.rate(_place(0, 10)) > 0
    assert warm.rate(_place(20, 10, lines=3)) == plain.rate(_place(20, 10))


@pytest.mark.parametrize(
    ("schedule", "changed"),
    [
        ("step", {"gamma": 0.3}),
        ("step", {"step_size": 3}),
        ("step", {"freq": 0.5}),
        ("exponential", {"gamma": 0.3}),
        ("exponential", {"step_size": 3}),
        ("exponential", {"freq": 3.0}),
        ("reduceonplateau", {"gamma": 0.3}),
        ("reduceonplateau", {"rop_patience": 1}),
        ("cosine", {"cos_t_max": 5}),
        ("cosine", {"cos_min_lr": 1e-3}),
        ("cosine_warm_restarts", {"cos_t_max": 5}),
        ("cosine_warm_restarts", {"cos_min_lr": 1e-3}),
        ("1cycle", {"epochs": 11}),
        *[(schedule, {"lrate": 0.02}) for schedule in SCHEDULES],
        *[(schedule, {"warmup": 30}) for schedule in SCHEDULES],
    ],
)
def test_no_option_is_ignored(schedule: str, changed: dict[str, Any]) -> None:
    def rates_of(options: Train) -> list[float]:
        rates, found = _rates(options), []
        for number in range(120):
            if number and number % 10 == 0:
                rates.validated(0.5, _place(number, 10))
            found.append(rates.rate(_place(number, 10)))
        return found

    options = _options(schedule=schedule)
    assert rates_of(options) != rates_of(replace(options, **changed))


_any_options = st.builds(
    _options,
    schedule=st.sampled_from(SCHEDULES),
    quit=st.sampled_from(["early", "aneal"]),
    lag=st.integers(1, 3),
    warmup=st.integers(0, 30),
    gamma=st.floats(0.01, 1.0),
    step_size=st.integers(1, 5),
    rop_patience=st.integers(0, 3),
    cos_t_max=st.integers(1, 8),
    cos_min_lr=st.sampled_from([0.0, 1e-6, 0.01]),
    freq=st.sampled_from([1.0, 2.0, 0.5, 0.3]),
    lrate=st.floats(0.01, 10.0),
)


def _run(rates: LearningRates, options: Train, scores: Sequence[float], begin: int, end: int) -> list[float]:
    """The rates of steps of epochs of ten, with their validations."""
    found = []
    each = steps_between_validations(options.freq, 10)
    for number in range(begin, end):
        found.append(rates.rate(_place(number, 10)))
        done = number % 10 + 1 if options.freq < 1 else number + 1
        if done % each == 0:
            score = scores[number % len(scores)]
            rates.validated(score, _place(number + 1, 10))
            if rates.annealing is not None:
                rates.annealing.update(score, epochs_done=(number + 1) // 10)
    return found


@given(
    options=_any_options, scores=st.lists(st.floats(0, 1), min_size=1, max_size=50), cut=st.integers(0, 90)
)
@settings(deadline=None, max_examples=80)
def test_a_run_goes_on_as_if_it_had_never_stopped(options: Train, scores: list[float], cut: int) -> None:
    """Whatever step it is resumed at: what is not in the checkpoint follows from the position."""
    whole = _run(_rates(options), options, scores, 0, 100)
    before = _rates(options)
    _run(before, options, scores, 0, cut)
    after = _rates(options)
    after.load_state_dict(before.state_dict())
    if after.annealing is not None:
        assert before.annealing is not None
        after.annealing.load_state_dict(before.annealing.state_dict())
    assert _run(after, options, scores, cut, 100) == whole[cut:]
    assert all(0 <= rate <= options.lrate * (1 + 1e-9) for rate in whole)


@given(options=_any_options, epoch=st.integers(0, 20), steps=st.integers(1, 500))
def test_the_end_of_an_epoch_is_the_beginning_of_the_next(options: Train, epoch: int, steps: int) -> None:
    """A validation's place may be named either way."""
    assume(options.schedule != "1cycle" or epoch < 11)
    rates = _rates(replace(options, warmup=0))
    end = Place(epoch=epoch, step=steps, steps=steps, number=1, samples=1)
    begin = Place(epoch=epoch + 1, step=0, steps=steps, number=1, samples=1)
    assert rates.rate(end) == pytest.approx(rates.rate(begin))


@pytest.mark.parametrize("freq", [1.0, 0.5, 2.0])
def test_aneal_cools_once_from_where_the_rate_is(freq: float) -> None:
    """By a cosine over --lag validations, step by step, then the training ends."""
    options = _options(quit="aneal", lag=4, cos_min_lr=1e-4, freq=freq, warmup=7)
    rates, interval, steps = _rates(options), round(freq * 10), 10
    assert rates.annealing is not None
    found = []
    for number in range(500):
        found.append(rates.rate(_place(number, steps)))
        if (number + 1) % interval == 0:
            # The first four improve, and so do the last ones, which comes too late.
            validation = (number + 1) // interval
            score = 0.1 * validation if validation <= 4 or validation > 8 else 0.1
            rates.validated(min(score, 0.95), _place(number + 1, steps))
            if rates.annealing.update(min(score, 0.95), epochs_done=(number + 1) // steps):
                break
    assert len(found) == 12 * interval
    begun = 8 * interval
    assert found[7:begun] == [0.01] * (begun - 7)
    for number, rate in enumerate(found[begun:]):
        share = number / (4 * interval)
        assert rate == pytest.approx(1e-4 + (0.01 - 1e-4) * (1 + math.cos(math.pi * share)) / 2)


def test_aneal_never_warms_up_what_is_cold() -> None:
    """A schedule may have gone below --cos-min-lr by itself."""
    options = _options(schedule="exponential", gamma=0.01, step_size=1, quit="aneal", lag=2, cos_min_lr=1e-3)
    rates = _rates(options)
    found = _run(rates, options, [0.5], 0, 60)
    assert all(one >= other for one, other in pairwise(found))


def test_aneal_says_when_scores_were_judged_before_their_place_was_noted() -> None:
    """Otherwise it would cool from nowhere."""
    rates = _rates(_options(quit="aneal", lag=1))
    assert rates.annealing is not None
    rates.annealing.update(0.5, epochs_done=1)
    rates.annealing.update(0.5, epochs_done=2)
    with pytest.raises(RuntimeError, match="noted"):
        rates.rate(_place(20, 10))


def test_the_learning_rate_follows_the_lines_of_a_step() -> None:
    options = _options(batch_size=4, lrate=0.01)
    assert base_rate(options, global_lines=64) == 0.01
    assert base_rate(replace(options, lrate_scaling="linear"), global_lines=64) == pytest.approx(0.16)
    assert base_rate(replace(options, lrate_scaling="sqrt"), global_lines=64) == pytest.approx(0.04)


def test_steps_cut_by_pixels_cannot_scale_the_learning_rate() -> None:
    with pytest.raises(InputError, match="--batch-size"):
        base_rate(_options(batch_size=0, lrate_scaling="sqrt"), global_lines=0)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"schedule": "1cycle", "epochs": -1}, "--epochs"),
        ({"schedule": "step", "gamma": 1.5}, "--gamma"),
        ({"schedule": "cosine", "lrate": 1e-7}, "--cos-min-lr"),
        ({"quit": "aneal", "lrate": 1e-7}, "--cos-min-lr"),
        ({"lrate_scaling": "linear", "batch_size": 0}, "--batch-size"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_rates(_options(**bad))


def test_the_defaults_are_accepted() -> None:
    check_rates(Train())
    check_rates(Pretrain())


def test_intervals_need_not_follow_from_the_epochs_length() -> None:
    """Validations keep the interval of the first epoch, whose length may differ."""
    options = _options(schedule="step", step_size=1, gamma=0.5, freq=0.5)
    rates = LearningRates(options, base=0.01, warmup_unit="steps", interval=6)
    assert [rates.rate(_place(number, 10)) for number in (5, 6)] == [0.01, 0.005]
