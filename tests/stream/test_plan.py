"""The epoch plan: each line exactly once, reproducible, nearly free of padding."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distrib.stream.plan import epoch_plan, padding_efficiency, sequential_plan

widths_strategy = hnp.arrays(np.int32, st.integers(1, 500), elements=st.integers(1, 4000))


@given(widths_strategy, st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 10_000))
def test_every_line_exactly_once_in_full_batches_but_one(
    widths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> None:
    plan = epoch_plan(widths, batch_size=batch_size, seed=seed, epoch=epoch, stretch=4)
    assert sorted(np.concatenate(plan).tolist()) == list(range(widths.size))
    sizes = sorted(batch.size for batch in plan)
    assert len(plan) == -(-widths.size // batch_size)
    assert all(size == batch_size for size in sizes[1:])


@given(widths_strategy, st.integers(1, 16), st.integers(0, 100))
def test_an_epoch_is_reproducible_and_unlike_the_next(widths: np.ndarray, batch_size: int, seed: int) -> None:
    first, again, second = (
        np.concatenate(epoch_plan(widths, batch_size=batch_size, seed=seed, epoch=epoch))
        for epoch in (0, 0, 1)
    )
    assert (first == again).all()
    if widths.size > 30:
        assert (first != second).any()


def test_an_order_recorded_once_never_changes() -> None:
    widths = np.array([30, 10, 20, 50, 40, 10, 60, 20, 30, 70] * 4, dtype=np.int32)
    plan = epoch_plan(widths, batch_size=2, seed=42, epoch=3, stretch=2)
    # A run resumed under another version must see the order it was started with.
    assert [batch.tolist() for batch in plan[:5]] == [[31, 12], [27, 0], [35, 22], [13, 36], [34, 6]]


def test_lines_of_a_small_set_do_not_meet_the_same_neighbours_in_every_epoch() -> None:
    widths = np.arange(320, dtype=np.int32)
    pairs = []
    for epoch in range(2):
        plan = epoch_plan(widths, batch_size=4, seed=1, epoch=epoch)
        pairs.append({(int(a), int(b)) for batch in plan for a in batch for b in batch if a < b})
    assert len(pairs[0] & pairs[1]) < 0.2 * len(pairs[0])


def test_padding_is_low_while_the_order_of_batches_is_random() -> None:
    generator = np.random.Generator(np.random.Philox(5))
    widths = generator.gamma(6, 300, 5000).astype(np.int32)
    plan = epoch_plan(widths, batch_size=16, seed=1, epoch=0)
    assert padding_efficiency(widths, plan) > 0.95
    means = np.array([widths[batch].mean() for batch in plan])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


@given(widths_strategy, st.integers(1, 16))
def test_evaluation_reads_every_line_once_widest_first(widths: np.ndarray, batch_size: int) -> None:
    plan = sequential_plan(widths, batch_size=batch_size)
    order = np.concatenate(plan)
    assert sorted(order.tolist()) == list(range(widths.size))
    assert (np.diff(widths[order].astype(np.int64)) <= 0).all()
