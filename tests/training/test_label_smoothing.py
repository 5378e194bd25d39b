"""A share of the loss asks for equal probabilities, in the same measure for short and long lines."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from distrib.training.label_smoothing import smoothed, uniformity_losses

LABELS = 5


def _scores(*, lines: int = 3, columns: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(2)
    return 2 * torch.randn(lines, LABELS, 1, columns, generator=draw)


def test_it_is_the_divergence_of_the_probabilities_from_equal_ones() -> None:
    scores, widths = _scores(), torch.tensor([12, 7, 1])
    expected = []
    for line, width in zip(scores[:, :, 0], widths.tolist(), strict=True):
        uniform = torch.full((width, LABELS), 1 / LABELS)
        found = line[:, :width].T.log_softmax(1)
        expected.append(float(functional.kl_div(found, uniform, reduction="sum")))
    assert uniformity_losses(scores, widths).tolist() == pytest.approx(expected, rel=1e-5)


def test_equal_probabilities_cost_nothing() -> None:
    assert uniformity_losses(torch.full((1, LABELS, 1, 9), 3.0), torch.tensor([9])).tolist() == [
        pytest.approx(0, abs=1e-5)
    ]


def test_padding_counts_for_nothing() -> None:
    """Else a line's loss would depend on the batch it is in."""
    scores, widths = _scores(lines=1, columns=12), torch.tensor([7])
    wide = uniformity_losses(scores, widths)
    assert torch.allclose(wide, uniformity_losses(scores[..., :7], widths))
    scores.requires_grad_()
    uniformity_losses(scores, widths).sum().backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert bool((scores.grad[..., 7:] == 0).all())
    assert bool((scores.grad[..., :7] != 0).any())


@pytest.mark.parametrize("repeated", [1, 10])
def test_the_share_means_the_same_for_lines_of_every_length(repeated: int) -> None:
    """In every column the gradient is that of targets of which the share is uniform, the rest CTC's."""
    share, width = 0.2, 4 * repeated
    scores = _scores(lines=1, columns=4).repeat(1, 1, 1, repeated).requires_grad_()
    labels, length = torch.tensor([[1, 2] * repeated]), torch.tensor([2 * repeated])
    likelihoods = scores[:, :, 0].permute(2, 0, 1).log_softmax(2)
    losses = functional.ctc_loss(likelihoods, labels, torch.tensor([width]), length, reduction="none")
    (ctc,) = torch.autograd.grad(losses.sum(), scores, retain_graph=True)
    (both,) = torch.autograd.grad(smoothed(losses, scores, torch.tensor([width]), share).sum(), scores)
    probabilities = scores.detach().softmax(1)
    aligned = probabilities - ctc
    targets = (1 - share) * aligned + share / LABELS
    assert torch.allclose(both, probabilities - targets, atol=1e-5)


def test_half_precision_scores_are_summed_in_full() -> None:
    scores = _scores(columns=3000)
    widths = torch.full((3,), 3000)
    found = uniformity_losses(scores.bfloat16(), widths)
    assert found.dtype == torch.float32
    assert torch.allclose(found, uniformity_losses(scores.bfloat16().float(), widths))
