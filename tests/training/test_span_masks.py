"""Spans of columns: whole, within their line, and the same whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.training.span_masks import SPAN, draw_spans, hide_spans

WIDTHS = st.lists(st.integers(0, 60), min_size=1, max_size=6)


def _draw(widths: list[int], lines: list[int] | None = None, **options: float) -> torch.Tensor:
    settings_ = {"seed": 3, "epoch": 1, "probability": 0.1, "width": 4, "purpose": 1, **options}
    numbers = list(range(len(widths))) if lines is None else lines
    return draw_spans(torch.tensor(widths), torch.tensor(numbers), **settings_)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(WIDTHS, st.floats(0, 1), st.integers(1, 70), st.integers(0, 9))
def test_spans_are_whole_and_end_with_their_line(
    widths: list[int], probability: float, width: int, seed: int
) -> None:
    """A span cut short, or one in the padding, would be asked for where there is nothing to see."""
    spans = _draw(widths, probability=probability, width=width, seed=seed)
    assert spans.shape == (len(widths), max(widths))
    for row, columns in zip(spans.tolist(), widths, strict=True):
        runs = "".join("x" if each else " " for each in row).split()
        assert all(len(run) >= width for run in runs)
        assert not any(row[columns:])
        if probability == 1 and columns >= width:
            assert all(row[:columns])


@settings(max_examples=40, deadline=None)
@given(WIDTHS, st.data())
def test_a_line_gets_the_same_spans_in_every_batch(widths: list[int], data: st.DataObject) -> None:
    """Else other numbers of processes would train on other spans."""
    lines = data.draw(st.lists(st.integers(0, 2**40), min_size=len(widths), max_size=len(widths)))
    together = _draw(widths, lines, probability=0.3)
    order = data.draw(st.permutations(range(len(widths))))
    for number in order:
        alone = _draw([widths[number]], [lines[number]], probability=0.3)
        assert torch.equal(alone[0], together[number, : widths[number]])


def test_every_column_starts_a_span_as_often_as_asked() -> None:
    starts = _draw([50] * 4000, width=1, probability=0.2).double().mean(0)
    assert float(starts.mean()) == pytest.approx(0.2, abs=0.004)
    assert float((starts - 0.2).abs().max()) < 0.03


@pytest.mark.parametrize("other", [{"seed": 4}, {"epoch": 2}, {"purpose": 2}])
def test_other_seeds_epochs_and_purposes_have_other_spans(other: dict[str, int]) -> None:
    """Else every epoch would hide the same columns, and negatives would be drawn where masks are."""
    assert not torch.equal(_draw([60] * 20), _draw([60] * 20, **other))


def test_the_spans_of_a_line_never_change() -> None:
    """A run that goes on with a newer version of anything walks the same curve."""
    spans = _draw([30], [12345], probability=0.15)[0]
    assert np.flatnonzero(spans.numpy()).tolist() == [*range(3, 7), *range(10, 14), *range(19, 24)]


def test_about_the_share_asked_for_is_hidden() -> None:
    features = torch.ones(2000, 1, 1, 120)
    hidden = hide_spans(features, torch.full((2000,), 120), torch.arange(2000), seed=1, epoch=0, share=0.3)
    columns = (hidden == 0).all(1)[:, 0]
    assert torch.equal(columns, (hidden == 0).any(1)[:, 0])
    assert float(columns[:, SPAN:-SPAN].double().mean()) == pytest.approx(0.3, abs=0.01)


def test_hidden_columns_send_no_gradient() -> None:
    features = torch.rand(2, 3, 1, 40, requires_grad=True)
    hidden = hide_spans(features, torch.tensor([40, 25]), torch.arange(2), seed=1, epoch=0, share=0.4)
    hidden.sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert torch.equal(features.grad != 0, hidden != 0)
    assert bool((hidden == 0).any())
    assert bool((hidden[1, :, :, 25:] != 0).all())
