"""Spans of columns, drawn alike whatever else is in the batch, and hiding them from the recurrent layers.

Hidden spans make the recurrent layers read a character from those around it, as SpecAugment's time masks do
for speech (Park et al. 2019); wav2vec 2.0 (Baevski et al. 2020) draws the spans that it predicts in this way.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distrib.training.distortion.draws import Draws

HIDDEN = 1
"""The ``purpose`` of spans that are hidden in recognition training; pretraining has its own."""

SPAN = 4
"""Columns of a hidden span: of 8 pixels each, as in the usual networks, they are most of a character."""


def draw_spans(
    widths: Tensor,
    lines: Tensor,
    *,
    seed: int,
    epoch: int,
    probability: float,
    width: int,
    purpose: int,
) -> Tensor:
    """The columns of each line that lie in a span, bool (N, W) on the CPU with W the largest of ``widths``.

    Each column of a line starts a span of ``width`` columns with ``probability``, if the line, which is
    ``widths`` int64 (N,) columns wide, has that many from there on; spans may overlap. What a line gets
    depends on its number ``lines`` int64 (N,), its width, ``seed``, ``epoch`` and ``purpose`` alone: other
    purposes get other spans.
    """
    columns = widths.numpy()
    numbers = Draws(seed, epoch, lines.numpy()).uniforms(f"spans {purpose}", int(columns.max(initial=0)))
    places = np.arange(numbers.shape[1])
    starts = (numbers < probability) & (places <= columns[:, None] - width)
    begun = np.cumsum(starts, axis=1, dtype=np.int32)
    if begun.shape[1] > width:
        # Spans that began are over after `width` columns; the right side must not see what is written.
        begun[:, width:] -= begun[:, :-width].copy()
    return torch.from_numpy(begun > 0)


def hide_spans(
    features: Tensor, widths: Tensor, lines: Tensor, *, seed: int, epoch: int, share: float
) -> Tensor:
    """The feature map (N, C, H, W) with spans of its columns set to zero, about ``share`` of each line's.

    ``widths`` int64 (N,) on the CPU are the columns of each line, ``lines`` int64 (N,) their numbers. A line
    of fewer columns than a span keeps them all, and at both ends a little less is hidden.
    """
    if not share:
        return features
    # A column stays visible where none of the spans that would hide it begins.
    probability = 1.0 - (1.0 - share) ** (1.0 / SPAN)
    spans = draw_spans(
        widths, lines, seed=seed, epoch=epoch, probability=probability, width=SPAN, purpose=HIDDEN
    )
    hidden = torch.zeros((features.shape[0], features.shape[3]), dtype=torch.bool)
    hidden[:, : spans.shape[1]] = spans
    return features.masked_fill(hidden.to(features.device, non_blocking=True)[:, None, None], 0.0)
