"""The epoch plan: each line exactly once, whatever the settings, and resumed anywhere as if never stopped."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.stream.plan import (
    EpochPlan,
    PlanSettings,
    describe_difference,
    plan_facts,
    sequential_plan,
)

HEIGHT = 48


class Hashed:
    """Widths of any number of lines that are nowhere: made when a slice is asked for."""

    def __init__(self, *, most: int = 10**9) -> None:
        self.most = most

    def __getitem__(self, lines: slice) -> np.ndarray:
        assert lines.stop - lines.start <= self.most, "more than a window was read at once"
        number = np.arange(lines.start, lines.stop, dtype=np.uint64)
        mixed = (number * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(54)
        return (300 + mixed).astype(np.int32)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(lines of each shard, widths of all lines); empty shards and equal widths are common."""
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=12))
    seed = draw(st.integers(0, 2**16))
    spread = draw(st.sampled_from([1, 3, 4000]))
    widths = np.random.default_rng(seed).integers(1, spread + 1, size=sum(sizes), dtype=np.int32)
    return np.array(sizes), widths


by_lines = st.builds(PlanSettings, global_lines=st.integers(1, 40), window=st.integers(1, 300))
by_pixels = st.builds(
    PlanSettings, global_pixels=st.integers(1, 10**6), window=st.integers(1, 300), height=st.just(HEIGHT)
)
any_settings = st.one_of(by_lines, by_pixels)
seeds = st.integers(0, 2**63)


@given(data_sets(), any_settings, seeds, st.integers(0, 10**6))
def test_every_line_is_in_exactly_one_batch(
    data: tuple, settings: PlanSettings, seed: int, epoch: int
) -> None:
    sizes, widths = data
    plan = EpochPlan(sizes, widths, settings=settings, seed=seed, epoch=epoch)
    batches = list(plan.batches())
    assert len(batches) == plan.steps
    assert all(batch.size and batch.dtype == np.int64 for batch in batches)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(widths.size))


@given(data_sets(), by_lines, seeds)
def test_all_batches_but_one_are_full(data: tuple, settings: PlanSettings, seed: int) -> None:
    sizes, widths = data
    plan = EpochPlan(sizes, widths, settings=settings, seed=seed, epoch=0)
    counts = sorted(batch.size for batch in plan.batches())
    assert plan.steps == -(-widths.size // settings.global_lines)
    assert all(count == settings.global_lines for count in counts[1:])
    if counts:
        assert counts[0] == widths.size - (len(counts) - 1) * settings.global_lines


@given(data_sets(), by_pixels, seeds)
def test_no_batch_has_more_pixels_than_the_budget_but_for_single_lines(
    data: tuple, settings: PlanSettings, seed: int
) -> None:
    sizes, widths = data
    for batch in EpochPlan(sizes, widths, settings=settings, seed=seed, epoch=0).batches():
        assert batch.size == 1 or batch.size * int(widths[batch].max()) * HEIGHT <= settings.global_pixels


def test_a_budget_is_used() -> None:
    widths = np.random.default_rng(1).integers(400, 800, 2000)
    budget = 32 * 600 * HEIGHT
    plan = EpochPlan(
        [2000], widths, settings=PlanSettings(global_pixels=budget, height=HEIGHT), seed=1, epoch=0
    )
    used = [batch.size * int(widths[batch].max()) * HEIGHT / budget for batch in plan.batches()]
    assert np.mean(used) > 0.93


@given(data_sets(), any_settings, seeds, st.data())
def test_resumed_at_any_step_the_rest_is_what_it_would_have_been(
    data: tuple, settings: PlanSettings, seed: int, draw: st.DataObject
) -> None:
    sizes, widths = data
    whole = list(EpochPlan(sizes, widths, settings=settings, seed=seed, epoch=2).batches())
    start = draw.draw(st.integers(0, len(whole) + 1))
    rest = list(EpochPlan(sizes, widths, settings=settings, seed=seed, epoch=2).batches(start))
    assert [batch.tolist() for batch in rest] == [batch.tolist() for batch in whole[start:]]


def test_every_start_gives_the_tail() -> None:
    widths = np.random.default_rng(3).integers(10, 900, 230)
    for settings in (
        PlanSettings(global_lines=4, window=50),
        PlanSettings(global_pixels=4000, window=50),
    ):
        plan = EpochPlan([100, 0, 130], widths, settings=settings, seed=5, epoch=1)
        whole = [batch.tolist() for batch in plan.batches()]
        for start in range(len(whole) + 1):
            fresh = EpochPlan([100, 0, 130], widths, settings=settings, seed=5, epoch=1)
            assert [batch.tolist() for batch in fresh.batches(start)] == whole[start:]


@given(data_sets(), any_settings, seeds)
def test_two_epochs_and_two_seeds_differ(data: tuple, settings: PlanSettings, seed: int) -> None:
    sizes, widths = data
    orders = [
        np.concatenate([*EpochPlan(sizes, widths, settings=settings, seed=a, epoch=b).batches(), []]).tolist()
        for a, b in ((seed, 0), (seed, 1), (seed + 1, 0))
    ]
    if widths.size > 40:
        assert orders[0] != orders[1]
        assert orders[0] != orders[2]


@given(data_sets(), any_settings, seeds)
def test_shards_of_a_window_are_known_before_it_is_planned(
    data: tuple, settings: PlanSettings, seed: int
) -> None:
    sizes, widths = data
    plan = EpochPlan(sizes, widths, settings=settings, seed=seed, epoch=0)
    ends = np.cumsum(sizes)
    for step, batch in enumerate(plan.batches()):
        shards = set(np.searchsorted(ends, batch, side="right").tolist())
        assert shards <= set(plan.window_shards(step))
        assert len(plan.window_shards(step)) <= np.count_nonzero(sizes)


def test_a_window_reads_from_few_shards_and_all_windows_are_about_equal() -> None:
    sizes = np.full(200, 100)
    settings = PlanSettings(global_lines=8, window=1000)
    plan = EpochPlan(sizes, Hashed(most=100), settings=settings, seed=1, epoch=0)
    assert plan.windows == 20
    assert len(plan.window_shards(0)) <= 22
    barely = EpochPlan([1001], Hashed(), settings=settings, seed=1, epoch=0)
    assert barely.windows == 2
    assert barely.window_of(62) == 0
    assert barely.window_of(64) == 1


def test_lines_of_one_large_shard_come_together_in_other_windows_in_every_epoch() -> None:
    settings = PlanSettings(global_lines=4, window=100)
    starts = set()
    for epoch in range(10):
        plan = EpochPlan([1000], Hashed(), settings=settings, seed=1, epoch=epoch)
        starts.add(min(next(plan.batches()).tolist()) // 100)
    assert len(starts) > 3


def test_the_short_batch_is_not_always_that_of_the_widest_lines() -> None:
    widths = np.arange(1, 90)
    short = []
    for epoch in range(30):
        plan = EpochPlan([89], widths, settings=PlanSettings(global_lines=10), seed=1, epoch=epoch)
        short += [float(widths[batch].mean()) for batch in plan.batches() if batch.size == 9]
    assert len(short) == 30
    assert 30 < np.mean(short) < 60


def test_lines_of_equal_width_are_shuffled() -> None:
    plan = EpochPlan([400], np.zeros(400), settings=PlanSettings(global_lines=20), seed=1, epoch=0)
    spans = [int(np.ptp(batch)) for batch in plan.batches()]
    assert np.mean(spans) > 300


def test_the_example_of_the_documentation_is_true() -> None:
    widths = np.array([90, 20, 50, 30, 80, 40, 60])
    settings = PlanSettings(global_lines=2, window=4)
    plan = EpochPlan([2, 1, 2, 2], widths, settings=settings, seed=0, epoch=0)
    assert [batch.tolist() for batch in plan.batches()] == [[4, 0], [1, 3], [5], [2, 6]]
    assert [plan.window_of(step) for step in range(5)] == [0, 0, 1, 1, 2]


def test_an_order_recorded_once_never_changes() -> None:
    # A run resumed under another version must see the order it was started with.
    widths = np.array([30, 10, 20, 50, 40, 10, 60, 20, 30, 70] * 4, dtype=np.int32)
    lines = EpochPlan([15, 25], widths, settings=PlanSettings(global_lines=3, window=20), seed=42, epoch=3)
    pixels = EpochPlan(
        [15, 25], widths, settings=PlanSettings(global_pixels=120, window=20), seed=42, epoch=3
    )
    assert [batch.tolist() for batch in lines.batches()][:4] == RECORDED_BY_LINES
    assert [batch.tolist() for batch in pixels.batches()][:4] == RECORDED_BY_PIXELS


RECORDED_BY_LINES = [[33, 16, 36], [38, 8, 34], [35, 5, 15], [6, 9, 39]]
RECORDED_BY_PIXELS = [[9], [26], [23, 13], [10, 24, 34]]


def test_settings_that_cannot_be_a_plan_are_refused() -> None:
    for wrong in ({}, {"global_lines": 4, "window": 0}, {"global_pixels": 4, "height": 0}):
        with pytest.raises(ValueError, match=r"must be at least|needs"):
            PlanSettings(**wrong)
    plan = EpochPlan([4], np.ones(4), settings=PlanSettings(global_lines=2), seed=0, epoch=0)
    with pytest.raises(ValueError, match="before the first"):
        next(plan.batches(-1))


def test_ten_million_lines_are_planned_in_ten_seconds_and_a_gigabyte() -> None:
    # In a process of its own: the peak of this one is that of all tests before.
    program = """
        import re, time
        from pathlib import Path
        import numpy as np
        from distrib.stream.plan import EpochPlan, PlanSettings
        widths = np.random.default_rng(0).gamma(6, 180, 10**7).astype(np.int32)
        start = time.perf_counter()
        plan = EpochPlan([25_000] * 400, widths, settings=PlanSettings(global_lines=64), seed=1, epoch=0)
        lines = sum(batch.size for batch in plan.batches())
        seconds = time.perf_counter() - start
        # Not the peak that getrusage knows: there the process that started this one counts, too.
        peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        print(lines, seconds, peak.group(1))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines, seconds, kibibytes = output.split()
    assert int(lines) == 10**7
    assert float(seconds) < 10
    assert int(kibibytes) < 1 << 20


@pytest.mark.parametrize(
    "settings", [PlanSettings(global_lines=64), PlanSettings(global_pixels=64 * 900)], ids=["lines", "pixels"]
)
def test_memory_does_not_grow_with_the_data(settings: PlanSettings) -> None:
    def peak(lines: int) -> int:
        tracemalloc.start()
        plan = EpochPlan([25_000] * (lines // 25_000), Hashed(), settings=settings, seed=1, epoch=0)
        for batch, _ in zip(plan.batches(), range(2500), strict=False):
            assert int(batch.max()) < lines
        if not settings.by_pixels:
            assert len(list(plan.batches(plan.steps - 1))) == 1
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return measured

    assert peak(10**8) < peak(10**6) + (1 << 20)


def test_the_last_step_of_a_hundred_million_lines_is_planned_from_one_window() -> None:
    read = []

    class Watched(Hashed):
        def __getitem__(self, lines: slice) -> np.ndarray:
            read.append(lines.stop - lines.start)
            return super().__getitem__(lines)

    plan = EpochPlan([10**6] * 100, Watched(), settings=PlanSettings(global_lines=96), seed=1, epoch=9)
    assert plan.steps == -(-(10**8) // 96)
    assert next(plan.batches(plan.steps - 1)).size in (96, 10**8 % 96)
    assert sum(read) <= 65_536


def facts(**changes: object) -> dict[str, object]:
    settings = PlanSettings(global_lines=16, window=1000)
    return plan_facts(lines=335, data="ab", settings=settings, seed=1) | changes


def test_what_differs_between_two_plans_is_named() -> None:
    assert describe_difference(facts(), facts()) is None
    assert describe_difference(facts(lines=360, data="x"), facts()) == "the data (360 lines then, 335 now)"
    assert (
        describe_difference(facts(data="x"), facts()) == "the data (335 lines then and now, but not the same)"
    )
    assert describe_difference(facts(global_lines=8), facts()) == "--global-batch-size (8 then, 16 now)"
    assert describe_difference(facts(seed=7, window=9), facts()) == (
        "--shuffle-window (9 then, 1000 now) and --seed (7 then, 1 now)"
    )
    assert describe_difference({}, facts()) is not None


def test_what_has_no_influence_on_the_order_is_no_difference() -> None:
    small = PlanSettings(global_lines=16, global_pixels=10, height=48)
    large = PlanSettings(global_lines=16, global_pixels=99, height=120)
    saved, now = (plan_facts(lines=3, data="", settings=settings, seed=1) for settings in (small, large))
    assert describe_difference(saved, now) is None
    widths = np.arange(100)
    orders = [
        [batch.tolist() for batch in EpochPlan([100], widths, settings=settings, seed=1, epoch=0).batches()]
        for settings in (small, large)
    ]
    assert orders[0] == orders[1]


@given(data_sets(), st.integers(1, 16))
def test_evaluation_reads_every_line_once_widest_first(data: tuple, batch_size: int) -> None:
    _, widths = data
    order = np.concatenate([*sequential_plan(widths, batch_size=batch_size), []]).astype(np.int64)
    assert sorted(order.tolist()) == list(range(widths.size))
    assert (np.diff(widths[order].astype(np.int64)) <= 0).all()
