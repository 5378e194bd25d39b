"""The picture and the summary of a learning rate, made before a run begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from distrib.config.learning import Pretrain, Train
from distrib.training.learning_rate_curve import curve, curve_svg, epochs_shown, rate_summary
from distrib.training.schedules import LearningRates, Place

SCHEDULES = ("constant", "1cycle", "exponential", "step", "reduceonplateau", "cosine", "cosine_warm_restarts")


def _options(**given: Any) -> Train:
    return Train(**{"lrate": 0.01, "epochs": 12, **given})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_picture_shows_the_curve(schedule: str) -> None:
    """It is well-formed, has the rates of the run, labelled axes and the options in its title."""
    options = _options(schedule=schedule, warmup=30)
    points = curve(options, steps=10, epochs=epochs_shown(options))
    rates = LearningRates(options, base=options.lrate, warmup_unit="steps")
    for number, (position, rate) in enumerate(points):
        place = Place(epoch=number // 10, step=number % 10, steps=10, number=number, samples=0)
        assert (position, rate) == (place.position, rates.rate(place))
    assert len(points) == 120
    root = ElementTree.fromstring(curve_svg(points, title=f"{rate_summary(options)} <&>"))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"epochs", "learning rate", f"{rate_summary(options)} <&>", "12"} <= set(texts)
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(line.attrib["points"].split()) == len(points)
    assert all(
        0 <= float(number) <= 720 for pair in line.attrib["points"].split() for number in pair.split(",")
    )


def test_rates_far_apart_are_drawn_by_their_logarithms() -> None:
    texts = curve_svg([(0.0, 1.0), (1.0, 1e-4)], title="")
    assert ">0.001<" in texts
    assert ">0.001<" not in curve_svg([(0.0, 1.0), (1.0, 0.02)], title="")


def test_long_runs_have_small_pictures() -> None:
    points = curve(_options(schedule="cosine"), steps=100_000, epochs=100)
    assert len(points) <= 2000
    assert points[-1][0] == pytest.approx(100, abs=1e-4)
    assert len(curve_svg(points, title="")) < 50_000


def test_warm_up_of_pretraining_is_drawn_in_lines() -> None:
    options = replace(Pretrain(), epochs=10, schedule="constant")
    points = curve(options, steps=100, epochs=10, warmup_unit="samples", lines=6400)
    assert points[499][1] == pytest.approx(options.lrate, rel=0.01)
    assert points[249][1] == pytest.approx(options.lrate / 2, rel=0.01)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            Train(schedule="cosine", warmup=500),
            "learning rate 0.001, cosine to 1e-06 at epoch 10, warm-up 500 steps",
        ),
        (Train(schedule="1cycle", epochs=50), "learning rate 0.001, 1cycle over 50 epochs"),
        (
            Train(quit="aneal", lag=3),
            "learning rate 0.001, constant, cooled to 1e-06 in 3 validations once 3 bring no improvement",
        ),
    ],
)
def test_the_summary_names_what_the_rate_does(options: Train, expected: str) -> None:
    assert rate_summary(options) == expected
