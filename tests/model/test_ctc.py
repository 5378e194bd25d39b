"""Best-path decoding, against a decoder written the obvious way."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.model.ctc import greedy_decode, greedy_decode_positions, required_steps


def scores_of(path: list[tuple[int, float]], labels: int = 5) -> torch.Tensor:
    """(L, W) log-probabilities whose best path and confidences are given."""
    scores = torch.empty(labels, len(path))
    for step, (label, confidence) in enumerate(path):
        scores[:, step] = (1 - confidence) / (labels - 1)
        scores[label, step] = confidence
    return scores.log()


def test_runs_and_blanks() -> None:
    """Repeated labels would be joined or doubled, or positions would be off (facts from kraken 7.1.1)."""
    path = [(0, 0.9), (1, 0.5), (1, 0.8), (0, 0.9), (1, 0.7), (2, 0.6), (2, 0.9), (0, 0.9)]
    scores = scores_of(path)[None]
    widths = torch.tensor([8])
    assert greedy_decode(scores, widths) == [[1, 1, 2]]
    expected = [(1, 1, 2, 0.8), (1, 4, 4, 0.7), (2, 5, 6, 0.9)]
    decoded = greedy_decode_positions(scores, widths)[0]
    assert decoded == [(*span[:3], pytest.approx(span[3])) for span in expected]
    shifted = greedy_decode_positions(scores.unsqueeze(2) + 7.0, widths)[0]
    assert shifted == [(*span[:3], pytest.approx(span[3])) for span in expected]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=12, max_size=12), min_size=1, max_size=4),
    st.data(),
)
def test_batch_is_decoded_line_by_line(paths: list[list[int]], data: st.DataObject) -> None:
    """What stands behind a line's end, or another line, would leak into its text."""
    widths = [data.draw(st.integers(0, 12)) for _ in paths]
    scores = torch.stack([scores_of([(label, 0.9) for label in path]) for path in paths])
    expected = [
        [label for label, _ in groupby(path[:width]) if label]
        for path, width in zip(paths, widths, strict=True)
    ]
    assert greedy_decode(scores, torch.tensor(widths)) == expected
    spans = greedy_decode_positions(scores, torch.tensor(widths))
    assert [[span[0] for span in line] for line in spans] == expected
    for line, path in zip(spans, paths, strict=True):
        for label, first, last, _ in line:
            assert set(path[first : last + 1]) == {label}


def test_empty_batch_and_empty_width() -> None:
    """Lines without time steps would stop an evaluation."""
    assert greedy_decode(torch.zeros(2, 5, 0), torch.tensor([0, 0])) == [[], []]
    assert greedy_decode_positions(torch.zeros(1, 5, 0), torch.tensor([0])) == [[]]


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=12))
def test_required_steps_is_what_ctc_loss_needs(labels: list[int]) -> None:
    """Lines that cannot be aligned would reach training, or good ones would be left out."""
    steps = required_steps(labels)
    for width, feasible in ((steps, True), (steps - 1, False)):
        if width < 1:
            continue
        loss = torch.nn.functional.ctc_loss(
            torch.zeros(width, 1, 4).log_softmax(2),
            torch.tensor([labels], dtype=torch.long),
            torch.tensor([width]),
            torch.tensor([len(labels)]),
        )
        assert bool(loss.isfinite()) is feasible
