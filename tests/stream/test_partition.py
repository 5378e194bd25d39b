"""The automatic split: a property of each line, whatever else the data set holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distrib.stream.partition import training_mask

keys_strategy = hnp.arrays(np.uint64, st.integers(2, 200), elements=st.integers(0, 2**64 - 1))
ratios = st.floats(0.05, 0.95)


@given(keys_strategy, ratios, st.integers(0, 2**32 - 1), st.randoms())
def test_order_of_lines_does_not_matter(keys: np.ndarray, ratio: float, seed: int, random: object) -> None:
    mask = training_mask(keys, ratio=ratio, seed=seed)
    order = np.arange(keys.size)
    random.shuffle(order)
    assert (training_mask(keys[order], ratio=ratio, seed=seed) == mask[order]).all()


@given(keys_strategy, ratios, st.integers(0, 2**32 - 1))
def test_both_sides_hold_something_and_equal_keys_stay_together(
    keys: np.ndarray, ratio: float, seed: int
) -> None:
    mask = training_mask(keys, ratio=ratio, seed=seed)
    if np.unique(keys).size > 1:
        assert mask.any()
        assert not mask.all()
    for key in np.unique(keys):
        assert np.unique(mask[keys == key]).size == 1


def test_more_lines_do_not_move_the_old_ones() -> None:
    keys = np.random.Generator(np.random.Philox(1)).integers(0, 2**64 - 1, 1000, dtype=np.uint64)
    few = training_mask(keys[:500], ratio=0.9, seed=7)
    assert (training_mask(keys, ratio=0.9, seed=7)[:500] == few).all()


def test_share_and_seed_are_kept() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    mask = training_mask(keys, ratio=0.9, seed=0)
    assert abs(mask.mean() - 0.9) < 0.01
    assert (training_mask(keys, ratio=0.9, seed=1) != mask).any()


def test_everything_can_be_trained_on() -> None:
    assert training_mask(np.arange(5, dtype=np.uint64), ratio=1.0, seed=0).all()
