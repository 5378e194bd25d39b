"""Masks fall on a line's own columns, follow from the line alone, and leave something to see."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.training.pretraining.masking import TRAINING, VALIDATION, HiddenColumns, hide_columns, line_keys

many_widths = st.lists(st.integers(0, 60), min_size=1, max_size=12)


def hide(widths: list[int], lines: list[int] | None = None, **changes: object) -> HiddenColumns:
    settings_: dict[str, object] = {"seed": 7, "epoch": 3, "probability": 0.3, "width": 4} | changes
    numbers = torch.arange(len(widths)) if lines is None else torch.tensor(lines)
    return hide_columns(torch.tensor(widths), numbers, **settings_)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(widths=many_widths, probability=st.floats(0.01, 0.99), width=st.integers(1, 9))
def test_masks_are_whole_and_on_the_line(widths: list[int], probability: float, width: int) -> None:
    """A mask in the padding would be predicted from nothing, and part of one would be too easy."""
    hidden = hide(widths, probability=probability, width=width)
    for mask, columns, count in zip(hidden.masks.tolist(), widths, hidden.counts.tolist(), strict=True):
        assert not any(mask[columns:])
        runs = "".join("#" if each else " " for each in mask).split()
        assert all(len(run) >= width for run in runs)
        assert bool(runs) == (columns >= width)
        assert columns <= width or not all(mask[:columns])
        assert count == (sum(mask) if sum(mask) > 1 else 0)


@settings(max_examples=40, deadline=None)
@given(widths=many_widths, others=many_widths)
def test_what_a_line_gets_does_not_depend_on_its_batch(widths: list[int], others: list[int]) -> None:
    """Another number of processes, other micro-batches: the same columns are to be predicted."""
    lines = list(range(100, 100 + len(widths)))
    alone = [hide([columns], [line]) for columns, line in zip(widths, lines, strict=True)]
    together = hide([*others, *widths], [*range(len(others)), *lines])
    for row, single in enumerate(alone, start=len(others)):
        columns = single.masks.shape[1]
        assert torch.equal(together.masks[row, :columns], single.masks[0])


def test_seed_epoch_line_and_purpose_each_change_the_masks() -> None:
    """The same masks in every epoch would show the network less of each line."""
    widths, base = [80] * 4, hide([80] * 4).masks
    assert torch.equal(base, hide(widths).masks)
    for changes in ({"seed": 8}, {"epoch": 4}, {"purpose": VALIDATION}, {"lines": [10, 11, 12, 13]}):
        assert not torch.equal(base, hide(widths, **changes).masks), changes


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5])
def test_each_column_starts_a_mask_with_the_probability(probability: float) -> None:
    """--mask-probability is that of a start, so that far more is hidden than that share."""
    hidden = hide([4000] * 4, probability=probability)
    share = float(hidden.masks.float().mean())
    assert share == pytest.approx(1 - (1 - probability) ** 4, abs=0.03)


def test_a_line_as_wide_as_a_mask_is_hidden_and_one_column_alone_is_not_predicted() -> None:
    """A single hidden column has no other to be told from; the loss would be zero for nothing."""
    hidden = hide([4, 3, 5])
    assert hidden.masks.sum(dim=1).tolist() == [4, 0, 4]
    single = hide([1, 2], width=1, probability=0.0001)
    assert single.masks.sum(dim=1).tolist() == [1, 1]
    assert (single.total, single.counts.tolist()) == (0, [0, 0])


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(3, 60), min_size=1, max_size=8), epoch=st.integers(0, 50))
def test_rare_masks_of_one_column_leave_something_to_predict(widths: list[int], epoch: int) -> None:
    """A run would end without a line that it could use, and blame the data."""
    hidden = hide(widths, width=1, probability=0.0001, epoch=epoch)
    assert hidden.counts.tolist() == [2] * len(widths)
    assert hidden.masks.sum(dim=1).tolist() == [2] * len(widths)


def test_gathered_columns_are_the_hidden_ones_in_order() -> None:
    """Context and target of a column would otherwise be those of different columns."""
    hidden = hide([30, 12, 50])
    values = torch.arange(3 * 2 * 3 * 50, dtype=torch.float32).view(3, 2, 3, 50)
    found, real = hidden.gather(values), hidden.real(values.device)
    assert found.shape == (3, int(hidden.counts.max()), 6)
    for row in range(3):
        chosen = values[row].flatten(0, 1)[:, hidden.masks[row]].T
        assert torch.equal(found[row][real[row]], chosen)


def test_keys_differ_between_lines_epochs_and_purposes() -> None:
    """Equal keys would draw equal negatives."""
    lines = torch.arange(50)
    drawn = [
        line_keys(lines, seed=seed, epoch=epoch, purpose=purpose)
        for seed, epoch, purpose in [(1, 0, TRAINING), (2, 0, TRAINING), (1, 1, TRAINING), (1, 0, VALIDATION)]
    ]
    assert torch.cat(drawn).unique().numel() == 200
