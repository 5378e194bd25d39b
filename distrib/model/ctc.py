"""CTC decoding: the best path, without a language model.

Graves et al., "Connectionist temporal classification", ICML 2006. Label 0 is the blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distrib.model.codec import LabelSpan

BLANK = 0


def required_steps(labels: Sequence[int]) -> int:
    """The time steps CTC needs for labels: one for each, and a blank between equal neighbours."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


@torch.no_grad()
def greedy_decode(scores: Tensor, widths: Tensor) -> list[list[int]]:
    """The labels of the best path of each line.

    ``scores`` is (N, L, W) or (N, L, 1, W), raw or normalised in any monotonous way; ``widths`` (N,) the
    time steps of each line. One transfer to the host for the whole batch.
    """
    best = _best_path(scores, widths)
    starts = torch.ones_like(best, dtype=torch.bool)
    starts[:, 1:] = best[:, 1:] != best[:, :-1]
    labels = torch.where(starts, best, BLANK).cpu().numpy()
    counts = np.count_nonzero(labels, axis=1)
    flat = labels[labels != BLANK].tolist()
    ends = np.cumsum(counts).tolist()
    return [flat[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]


@torch.no_grad()
def greedy_decode_positions(scores: Tensor, widths: Tensor) -> list[list[LabelSpan]]:
    """As ``greedy_decode``, with each label's first and last time step and confidence.

    The confidence is the label's largest softmax probability among its time steps. ``scores`` are raw.
    """
    best = _best_path(scores, widths)
    rows = _rows(scores).float()
    confidence = (rows.amax(1) - rows.logsumexp(1)).exp()
    packed = torch.stack([best.to(torch.int32), confidence.view(torch.int32)]).cpu().numpy()
    paths, confidences = packed[0], packed[1].view(np.float32)
    return [_spans(path, values) for path, values in zip(paths, confidences, strict=True)]


def _rows(scores: Tensor) -> Tensor:
    return scores.squeeze(2) if scores.dim() == 4 else scores


def _best_path(scores: Tensor, widths: Tensor) -> Tensor:
    """(N, W) the best label of each step, blank past a line's end."""
    best = _rows(scores).argmax(1)
    steps = torch.arange(best.shape[1], device=best.device)
    lengths = widths.to(best.device, non_blocking=True)
    return best.masked_fill(steps >= lengths[:, None], BLANK)


def _spans(path: np.ndarray[Any, Any], confidences: np.ndarray[Any, Any]) -> list[LabelSpan]:
    if not len(path):
        return []
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    ends = np.append(starts[1:], len(path)) - 1
    best = np.maximum.reduceat(confidences, starts)
    kept = path[starts] != BLANK
    columns = (path[starts][kept], starts[kept], ends[kept], best[kept])
    return list(zip(*(column.tolist() for column in columns), strict=True))
