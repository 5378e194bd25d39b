"""The measures of an order, on orders whose measures are known; and those of the plan, on real widths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distrib.ground_truth.reader import read_line_images
from distrib.ground_truth.records import LineImage
from distrib.ground_truth.sources import expand_sources
from distrib.stream.micro_batches import split_step
from distrib.stream.order_measures import (
    load_balance,
    padding_efficiency,
    reunion_rate,
    width_clustering,
    width_drift,
    width_succession,
)
from distrib.stream.plan import EpochPlan, GlobalBatch, PlanSettings

HEIGHT = 120
EPOCHS = 10


def plain_shuffle(lines: int, batch: int, seed: int) -> list[GlobalBatch]:
    order = np.random.default_rng(seed).permutation(lines)
    return np.split(order, range(batch, lines, batch))


def page_like_widths(lines: int, seed: int) -> np.ndarray:
    """Widths as real pages have them: most lines fill a column of text, others are short."""
    generator = np.random.default_rng(seed)
    full = generator.lognormal(np.log(1450), 0.22, lines)
    short = generator.lognormal(np.log(700), 0.5, lines)
    return np.where(generator.random(lines) < 0.8, full, short).clip(60, 5000).astype(np.int32)


def epochs(widths: np.ndarray, lines: int, *, count: int = EPOCHS) -> list[list[GlobalBatch]]:
    settings = PlanSettings(global_lines=lines)
    return [
        list(EpochPlan([widths.size], widths, settings=settings, seed=1, epoch=epoch).batches())
        for epoch in range(count)
    ]


def efficiency(widths: np.ndarray, lines: int, world_size: int) -> float:
    """Mean over epochs of real over padded columns after dividing; ``lines`` a process."""
    shares = []
    for plan in epochs(widths, lines * world_size):
        parts = [
            batch[part]
            for batch in plan
            for own in split_step(
                widths[batch], world_size=world_size, max_lines=lines, max_pixels=0, height=HEIGHT
            )
            for part in own
        ]
        shares.append(padding_efficiency(widths, parts))
    return float(np.mean(shares))


def test_padding_is_what_lines_lack_of_the_widest_in_their_batch() -> None:
    widths = np.array([10, 20, 30, 40], dtype=np.int32)
    assert padding_efficiency(widths, [np.array([0, 3]), np.array([1, 2])]) == 100 / 140
    assert padding_efficiency(widths, [np.array([2]), np.array([], dtype=np.int64)]) == 1.0
    assert padding_efficiency(widths, []) == 1.0


def test_balance_is_what_the_others_do_of_the_busiest() -> None:
    widths = np.array([10, 20, 30, 40])
    assert load_balance(widths, [[np.array([0, 1])], [np.array([2, 3])]]) == (40 + 80) / 2 / 80
    assert load_balance(widths, [[np.array([], dtype=np.int64)]]) == 1.0


def test_reunion_is_one_for_plain_shuffles_and_greatest_for_the_same_batches() -> None:
    first, second = plain_shuffle(6000, 16, 1), plain_shuffle(6000, 16, 2)
    assert 0.85 < reunion_rate(first, second) < 1.15
    assert reunion_rate(first, first) == pytest.approx(5999 / 15)
    assert reunion_rate([np.array([0, 1]), np.array([2, 3])], [np.array([0, 2]), np.array([1, 3])]) == 0.0
    assert np.isnan(reunion_rate([np.array([0])], [np.array([0])]))


def test_correlations_are_none_for_plain_shuffles_and_whole_for_sorted_lines() -> None:
    widths = np.arange(1, 4001)
    shuffled = plain_shuffle(4000, 8, 1)
    in_order = np.split(np.arange(4000), 500)
    assert abs(width_drift(widths, shuffled)) < 0.1
    assert abs(width_succession(widths, shuffled)) < 0.1
    assert abs(width_clustering(widths, shuffled)) < 0.05
    assert width_drift(widths, in_order) == pytest.approx(1)
    assert width_succession(widths, in_order) == pytest.approx(1)
    assert width_clustering(widths, in_order) > 0.99
    assert width_clustering(np.ones(8), in_order[:1]) == 0.0
    assert width_drift(widths, in_order[:1]) == 0.0


def test_width_of_a_batch_tells_neither_its_step_nor_the_next_batch() -> None:
    widths = page_like_widths(20_000, 0)
    for plan in epochs(widths, 16, count=2):
        assert abs(width_drift(widths, plan)) < 0.1
        assert abs(width_succession(widths, plan)) < 0.1
        assert width_clustering(widths, plan) > 0.9


@pytest.mark.parametrize(("lines", "least"), [(4, 0.93), (16, 0.95)])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_padding_of_page_like_widths(lines: int, least: float, world_size: int, seed: int) -> None:
    assert efficiency(page_like_widths(350, seed), lines, world_size) >= least


def test_large_sets_pad_less_and_come_near_a_plain_shuffle() -> None:
    widths = page_like_widths(65_536, 0)
    first, second = epochs(widths, 16, count=2)
    assert padding_efficiency(widths, first) > 0.97
    # Lines of like width share batches, so pairs meet as often as their share of a blurred width makes them.
    assert reunion_rate(first, second) < 80


def test_small_sets_meet_other_lines_in_every_epoch() -> None:
    widths = page_like_widths(350, 0)
    greatest = 349 / 3
    rates = [reunion_rate(first, second) for first, second in pairwise(epochs(widths, 4))]
    assert np.mean(rates) < greatest / 10


@cache
def real_widths(collection: Path) -> np.ndarray:
    """Widths as network input of the lines of a collection, one in ten left out for validation."""
    if collection.name == "print16-alto":
        sources = expand_sources([collection / "**" / "*.xml"], format_type="alto")
        sizes = _extracted_sizes(sources)
    else:
        sizes = [Image.open(path).size for path in sorted(collection.glob("*.png"))]
    widths = np.array([width * HEIGHT // height + 32 for width, height in sizes], dtype=np.int32)
    return np.random.default_rng(0).permutation(widths)[: widths.size * 9 // 10]


def _extracted_sizes(sources: Sequence[Path]) -> list[tuple[int, int]]:
    lines = (line for source in sources for line in read_line_images(source, format_type="alto"))
    return [line.image.size for line in lines if isinstance(line, LineImage)]


@pytest.mark.real
@pytest.mark.parametrize("collection", ["fraktur-lines", "print16-alto"])
@pytest.mark.parametrize(("lines", "least"), [(4, 0.93), (16, 0.95)])
def test_padding_of_real_lines(real_data: Path, collection: str, lines: int, least: float) -> None:
    widths = real_widths(real_data / collection)
    assert efficiency(widths, lines, 1) >= least
    reunions = [reunion_rate(first, second) for first, second in pairwise(epochs(widths, lines))]
    assert np.mean(reunions) < (widths.size - 1) / (lines - 1) / 3
