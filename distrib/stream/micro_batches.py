"""Dividing a global batch: which lines each process computes on at once.

A global batch is sorted by width and cut in slices of about equal cost, as many in each of its micro-steps as
there are processes. Widths of a batch of ten, two processes, at most four lines at once::

    widths sorted     20  22  25 |  30  50  52 |  90  92 | 95  97
    micro-step 0      process 0: 95 97         process 1: 90 92
    micro-step 1      process 0: 20 22 25      process 1: 30 50 52

Processes wait for each other at the end of a step, so what counts is the share of real columns in what the
busiest one computes: padding and uneven loads are the same loss. A step has as few micro-steps as make
that share good, since each costs a pass through the network.

Every process computes this alone and comes to the same result, so the cut is deterministic, and fast.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

GOOD_SHARE = 0.95
"""Real columns over those the busiest process computes, times processes: enough to stop cutting further."""

_LINES_WORTH_A_PASS = 4
# Micro-batches of fewer lines on average save less padding than another pass through the network costs.

_SHARE_WORTH_A_PASS = 0.01

_SEARCH_TOLERANCE = 64
# The search for slices of equal cost stops at one part in this many.

Slice = tuple[int, int]
MicroBatch = npt.NDArray[np.int64]


def split_step(
    widths: npt.NDArray[np.integer[Any]],
    *,
    world_size: int,
    max_lines: int,
    max_pixels: int,
    height: int,
    good_share: float = GOOD_SHARE,
) -> list[list[MicroBatch]]:
    """For each rank, M arrays of places in the batch of ``widths`` (n,) columns; M >= 1, equal on all ranks.

    Together they hold 0..n-1 exactly once. No array has more than ``max_lines`` lines, nor more than
    ``max_pixels`` pixels with padding unless it is a single line (0: no such limit); a column has ``height``
    pixels. Arrays are empty only where lines are too few for the processes. The widest come first, so that
    memory runs out at once or never. ``good_share`` 0 asks for no more micro-steps than the limits do.
    """
    order = np.argsort(widths, kind="stable")
    batch = _SortedBatch(widths[order].astype(np.int64))
    limits = _limits(batch, max_lines, max_pixels, height)
    best: list[list[Slice]] = []
    best_share = -1.0
    micro_steps = -(-batch.fewest_slices(*limits) // world_size)
    most = max(micro_steps, batch.lines // (_LINES_WORTH_A_PASS * world_size))
    while micro_steps <= most:
        slices = batch.even_slices(micro_steps * world_size, *limits)
        dealt, busiest = batch.deal(slices, world_size)
        share = batch.columns / (world_size * busiest) if busiest else 1.0
        if share > best_share + _SHARE_WORTH_A_PASS:
            best, best_share = dealt, share
        if share >= good_share:
            break
        micro_steps += max(1, micro_steps // 4)
    return [[order[start:end] for start, end in own] for own in best]


def _limits(batch: _SortedBatch, max_lines: int, max_pixels: int, height: int) -> tuple[int, int]:
    """(most lines, most padded columns) of a slice."""
    return (
        max_lines if max_lines > 0 else max(1, batch.lines),
        max_pixels // height if max_pixels > 0 else batch.cost((0, batch.lines)),
    )


class _SortedBatch:
    """Ascending widths of a batch and its slices [start, end), which cost their padded columns."""

    def __init__(self, widths: npt.NDArray[np.int64]) -> None:
        self.lines = int(widths.size)
        self.columns = int(widths.sum())
        # A list: the loops below look single widths up, several times faster than in an array.
        self._widths: list[int] = widths.tolist()

    def cost(self, piece: Slice) -> int:
        """Columns of a slice with padding."""
        start, end = piece
        return (end - start) * self._widths[end - 1] if end > start else 0

    def fewest_slices(self, max_lines: int, max_columns: int) -> int:
        """How many slices the limits ask for, at least 1."""
        return max(1, len(self._cut(max_lines, max_columns, at_most=self.lines)))

    def even_slices(self, count: int, max_lines: int, max_columns: int) -> list[Slice]:
        """The batch in ``count`` slices within the limits, the costliest as cheap as can be.

        Fewer only where there are fewer lines; ``count`` must be as many as the limits ask for.
        """
        slices = self._cut(max_lines, max_columns, at_most=self.lines)
        if not slices or count * max_lines == self.lines:
            return slices
        low = max(self._widths[-1], self.columns // count)
        high = max(map(self.cost, slices))
        while (high - low) * _SEARCH_TOLERANCE > high:
            middle = (low + high) // 2
            cheaper = self._cut(max_lines, min(middle, max_columns), at_most=count)
            if len(cheaper) <= count:
                high, slices = middle, cheaper
            else:
                low = middle + 1
        return self._fill_up(slices, count)

    def _cut(self, max_lines: int, max_columns: int, *, at_most: int) -> list[Slice]:
        """The fewest slices within the limits, from the widest line down; stops once past ``at_most``."""
        slices: list[Slice] = []
        end, widths = self.lines, self._widths
        while end and len(slices) <= at_most:
            start = max(0, end - max(1, min(max_lines, max_columns // max(1, widths[end - 1]))))
            slices.append((start, end))
            end = start
        return slices

    def _fill_up(self, slices: list[Slice], count: int) -> list[Slice]:
        """The costliest slices halved until there are ``count``: a process without lines would only wait."""
        if len(slices) == count:
            return slices
        costliest = [(-self.cost(piece), piece) for piece in slices]
        heapq.heapify(costliest)
        single: list[Slice] = []
        while costliest and len(costliest) + len(single) < count:
            _, (start, end) = heapq.heappop(costliest)
            if end - start == 1:
                single.append((start, end))
                continue
            # The wider half is the smaller one: it costs more a line.
            middle = (start + end + 1) // 2
            for part in ((start, middle), (middle, end)):
                heapq.heappush(costliest, (-self.cost(part), part))
        return single + [piece for _, piece in costliest]

    def deal(self, slices: list[Slice], world_size: int) -> tuple[list[list[Slice]], int]:
        """(slices of each rank, columns of the busiest): each round's costliest to who had least so far."""
        slices = sorted(slices, reverse=True)
        slices += [(0, 0)] * (-len(slices) % world_size or (0 if slices else world_size))
        dealt: list[list[Slice]] = [[] for _ in range(world_size)]
        loads = [0] * world_size
        for turn in range(0, len(slices), world_size):
            costs = [(self.cost(piece), piece) for piece in slices[turn : turn + world_size]]
            ranks = sorted(range(world_size), key=loads.__getitem__)
            for (cost, piece), rank in zip(sorted(costs, reverse=True), ranks, strict=True):
                dealt[rank].append(piece)
                loads[rank] += cost
        return dealt, max(loads)
