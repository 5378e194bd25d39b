"""Which columns of each line's feature map are hidden from the recurrent layers, and are to be predicted.

As in wav2vec 2.0 (Baevski et al. 2020) each column starts a mask of ``width`` columns with a probability, and
masks may overlap. What a line gets follows from its number, its width, the seed and the epoch alone: neither
the batch that it is in, nor its padding, nor the number of processes changes it. Two things differ from the
paper, since text lines can be short: a line in which no mask began gets one, and so does, in place of those
that were drawn, one of which nothing would be left to see. Where masks are of one column it gets two, since a
column is predicted by telling it from others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from distrib.training.span_masks import draw_spans

TRAINING, VALIDATION = 2, 3
"""Purposes of masks, beside those of ``span_masks``: each draws others."""

_FEWEST = 2
"""Hidden columns of a line, without which none could be told from another."""


@dataclass(frozen=True, kw_only=True)
class HiddenColumns:
    """The hidden columns of N lines, on the CPU.

    ``masks`` bool (N, W) with W the columns of the widest line; ``counts`` int64 (N,) how many of a line are
    to be predicted: all hidden ones, or none where there is only one; ``positions`` int64 (N, M) where they
    are, M the largest count, followed by any others where a line has fewer.
    """

    masks: Tensor
    counts: Tensor
    positions: Tensor

    @property
    def total(self) -> int:
        """Columns to be predicted of all lines."""
        return int(self.counts.sum())

    def gather(self, values: Tensor) -> Tensor:
        """What ``values`` (N, C, H, W) hold at the positions, (N, M, C * H)."""
        count, channels, height, width = values.shape
        rows = values.reshape(count, channels * height, width).transpose(1, 2)
        index = self.positions.to(values.device, non_blocking=True)
        return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))

    def real(self, device: torch.device) -> Tensor:
        """bool (N, M): which of the positions are to be predicted."""
        places = torch.arange(self.positions.shape[1], device=device)
        return places < self.counts.to(device, non_blocking=True)[:, None]


def hide_columns(
    widths: Tensor,
    lines: Tensor,
    *,
    seed: int,
    epoch: int,
    probability: float,
    width: int,
    purpose: int = TRAINING,
) -> HiddenColumns:
    """Masks of ``width`` columns for lines that have ``widths`` int64 (N,) of them, numbered ``lines`` (N,).

    A line narrower than a mask gets none, one just as wide is hidden as a whole.
    """
    masks = draw_spans(
        widths, lines, seed=seed, epoch=epoch, probability=probability, width=width, purpose=purpose
    )
    hidden = masks.sum(dim=1)
    amiss = ((hidden < _FEWEST) | (hidden == widths)) & (widths >= width)
    for row in amiss.nonzero().flatten().tolist():
        columns, place = int(widths[row]), (seed, epoch, int(lines[row]), purpose)
        start = _draw(columns - width + 1, *place)
        masks[row] = False
        masks[row, start : start + width] = True
        if width < _FEWEST < columns:
            masks[row, (start + 1 + _draw(columns - 1, *place, 1)) % columns] = True
    counts = masks.sum(dim=1)
    counts[counts < _FEWEST] = 0
    longest = int(counts.max()) if len(counts) else 0
    # False sorts before True, and columns keep their order.
    positions = torch.argsort(~masks, dim=1, stable=True)[:, :longest]
    return HiddenColumns(masks=masks, counts=counts, positions=positions)


def line_keys(lines: Tensor, *, seed: int, epoch: int, purpose: int) -> Tensor:
    """A number for each of ``lines`` int64 (N,) from which what is drawn for it follows, int64 (N,)."""
    digests = [_digest(seed, epoch, line, purpose)[:8] for line in lines.tolist()]
    keys = [int.from_bytes(digest, "little", signed=True) for digest in digests]
    return torch.tensor(keys, dtype=torch.int64)


def _draw(below: int, *numbers: int) -> int:
    """A number in 0..below - 1 that follows from ``numbers``."""
    return int.from_bytes(_digest(*numbers), "little") % below


def _digest(*numbers: int) -> bytes:
    # The name keeps it apart from what spans are drawn from.
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return blake2b(packed, digest_size=16, person=b"pretraining").digest()
