"""The order of an epoch: which lines are in which global batch, a pure function of index, seed and settings.

Seven lines in four shards, windows of four lines, global batches of two, seed 0, epoch 0::

    positions          0   1 |  2 |  3   4 |  5   6     shards of 2, 1, 2 and 2 lines
    widths            90  20 | 50 | 30  80 | 40  60

    shards permuted    0   1 |  3   4 |  2 |  5   6
    windows            0    1   3    4  ||  2    5   6  slices of 4 of that line-up
    sorted             1    3   4    0  ||  5    2   6  by width, blurred: see _BLUR
    cut               (1    3) (4    0) || (5)  (2   6) one batch of an epoch may be short
    permuted          (4    0) (1    3) || (5)  (2   6) steps 0, 1, 2, 3

Nothing here knows how many processes there are: they divide a global batch (``micro_batches``), so step k
holds the same lines at every size. A window starts at a multiple of its length and has its own random
stream, so step k is planned without what came before it, from one window of widths.

What is traded: wider windows mix lines of more shards and leave less padding, but read from more shards at
once; more blur keeps company changing from epoch to epoch, but pads more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

PLAN_VERSION = 1
"""Raised whenever the same index, seed and settings would give another order."""

_BLUR = 32
_LEAST_BLUR, _MOST_BLUR = 0.02, 0.10
# Sorted strictly, a few hundred lines have the same neighbours in every epoch, which costs points of
# accuracy early in training. So: the fewer batches a window has, the more blur. On pages of 350 lines in
# batches of four, a blur of 0.10 leaves 0.94 of the columns real and a pair of lines meets again in the next
# epoch in 8 % of cases; 0.02 leaves 0.98 and 25 %, 0.20 leaves 0.90 and 4 %. In large windows chance alone
# brings new neighbours, and less than 0.02 would save nothing.

_PIECES_OF_A_WINDOW = 2
# Shards larger than half a window are cut, or the windows of a large shard would hold the same lines in
# every epoch. Smaller ones stay whole: a shard then is fetched once an epoch.

GlobalBatch = npt.NDArray[np.int64]
"""Positions (n,) of the lines of one global step."""

_Integers = npt.NDArray[np.int64]


class Widths(Protocol):
    """Columns of each line as network input, in shard order: an array, a memory map, or made on demand."""

    def __getitem__(self, lines: slice, /) -> npt.NDArray[Any]:
        """The widths of a slice of positions."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """How batches are cut.

    ``global_lines`` lines a global batch; where it is 0, batches hold at most ``global_pixels`` pixels with
    padding (or one line that has more). ``window`` lines are shuffled together. ``height`` is the pixels of
    a column.
    """

    global_lines: int = 0
    global_pixels: int = 0
    window: int = 65_536
    height: int = 1

    def __post_init__(self) -> None:
        if self.global_lines < 1 and self.global_pixels < 1:
            raise ValueError("a plan needs a number of lines or of pixels for its batches")
        if self.window < 1 or self.height < 1:
            raise ValueError(f"window {self.window} and height {self.height} must be at least 1")

    @property
    def by_pixels(self) -> bool:
        """True where batches are cut by pixels, not by lines."""
        return self.global_lines < 1


class EpochPlan:
    """The global batches of one epoch; every position is in exactly one.

    ``shard_sizes`` (S,) counts the lines to train on of each shard, 0 allowed; position p counts through
    them in order, and ``widths[a:b]`` gives their columns. Only slices of windows asked for are read.

    Cut by lines, every batch but one has ``global_lines``, and the window of a step is known at once. Cut
    by pixels, the windows before a step are planned once to count their batches; the counts are kept.
    """

    def __init__(
        self,
        shard_sizes: npt.ArrayLike,
        widths: Widths,
        *,
        settings: PlanSettings,
        seed: int,
        epoch: int,
    ) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.lines = int(sizes.sum())
        self.settings = settings
        self._widths = widths
        self._key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
        self._window = _window_lines(self.lines, settings)
        self.windows = -(-self.lines // self._window)
        pieces = _cut_shards(sizes, at_most=max(1, self._window // _PIECES_OF_A_WINDOW))
        pieces = pieces[:, self._random(0).permutation(pieces.shape[1])]
        self._piece_shards, self._piece_starts, lengths = pieces
        self._piece_ends = np.cumsum(lengths)
        self._ends: list[int] = []
        self._shards_of = lru_cache(maxsize=2)(self._read_shards)

    @property
    def steps(self) -> int:
        """Global batches of the epoch. Cut by pixels, the first call plans every window once."""
        if not self.settings.by_pixels:
            return -(-self.lines // self.settings.global_lines)
        return self._end(self.windows - 1)

    def batches(self, start: int = 0) -> Iterator[GlobalBatch]:
        """The batches from step ``start`` on; those before are not planned where the cut is by lines."""
        window, skipped = self._place(start)
        for number in range(window, self.windows):
            order, starts, random = self._cut_window(number)
            self._keep_count(number, starts.size)
            ends = np.append(starts[1:], order.size)
            for batch in random.permutation(starts.size)[skipped:]:
                yield order[starts[batch] : ends[batch]]
            skipped = 0

    def window_of(self, step: int) -> int:
        """The window that step ``step`` is cut from; ``windows`` past the last step."""
        return self._place(step)[0]

    def window_shards(self, step: int) -> tuple[int, ...]:
        """Shards read for a step and those after it, nearest need first: its window's, then the next's."""
        return self._shards_of(self.window_of(step))

    def _read_shards(self, window: int) -> tuple[int, ...]:
        shards = [
            int(shard)
            for number in range(window, min(window + 2, self.windows))
            for shard in self._piece_shards[slice(*self._pieces_of(number))]
        ]
        return tuple(dict.fromkeys(shards))

    def _place(self, step: int) -> tuple[int, int]:
        """(window of a step, steps of that window before it)."""
        if step < 0:
            raise ValueError(f"step {step} is before the first")
        if not self.settings.by_pixels:
            lines = step * self.settings.global_lines
            window = min(lines // self._window, self.windows)
            return window, step - window * self._window // self.settings.global_lines
        while self._end(len(self._ends) - 1) <= step and len(self._ends) < self.windows:
            self._end(len(self._ends))
        window = bisect_right(self._ends, step)
        return window, step - self._end(window - 1)

    def _end(self, window: int) -> int:
        """Steps of all windows up to and with this one, where the cut is by pixels."""
        while len(self._ends) <= window:
            self._keep_count(len(self._ends), self._cut_window(len(self._ends))[1].size)
        return self._ends[window] if window >= 0 else 0

    def _keep_count(self, window: int, batches: int) -> None:
        if window == len(self._ends):
            self._ends.append(self._end(window - 1) + batches)

    def _cut_window(self, window: int) -> tuple[_Integers, _Integers, _Random]:
        """(positions of a window sorted by blurred width, starts of its batches in them, its generator)."""
        random = self._random(window + 1)
        slices = list(self._slices_of(window))
        positions = np.concatenate([np.arange(part.start, part.stop) for part in slices])
        widths = np.concatenate([np.asarray(self._widths[part]) for part in slices]).astype(np.int64)
        blur = _blur(widths, self.settings)
        # Lines of equal width are shuffled by it, too. Products and sums of doubles are the same to the bit
        # on every machine, an exponential is not: ranks on unlike processors must not disagree on the order.
        keys = np.maximum(widths, 1) * (1.0 + blur * (2.0 * random.uniform(positions.size) - 1.0))
        order = np.argsort(keys, kind="stable")
        if self.settings.by_pixels:
            columns = self.settings.global_pixels // self.settings.height
            starts = _starts_by_columns(widths[order], columns)
        else:
            starts = _starts_by_lines(positions.size, self.settings.global_lines, random)
        return positions[order], starts, random

    def _slices_of(self, window: int) -> Iterator[slice]:
        """Slices of positions that a window is made of."""
        begin, end = self._bounds(window)
        first, last = self._pieces_of(window)
        for piece in range(first, last):
            piece_end = int(self._piece_ends[piece])
            piece_begin = int(self._piece_ends[piece - 1]) if piece else 0
            start = int(self._piece_starts[piece])
            yield slice(
                start + max(begin, piece_begin) - piece_begin, start + min(end, piece_end) - piece_begin
            )

    def _pieces_of(self, window: int) -> tuple[int, int]:
        """(first, last + 1) of the permuted pieces that have lines in a window."""
        begin, end = self._bounds(window)
        first = np.searchsorted(self._piece_ends, begin, side="right")
        last = np.searchsorted(self._piece_ends, end, side="left")
        return int(first), int(last) + 1

    def _bounds(self, window: int) -> tuple[int, int]:
        return window * self._window, min((window + 1) * self._window, self.lines)

    def _random(self, stream: int) -> _Random:
        """Stream 0 is for the shards, stream w + 1 for window w; they never overlap."""
        return _Random(np.random.Philox(key=self._key, counter=[0, 0, stream, 0]))


class _Random:
    """Random numbers of a Philox stream (Salmon et al. 2011) that are the same in every version of numpy.

    numpy promises that for the raw stream only, and a run may be resumed under another version.
    """

    def __init__(self, stream: np.random.Philox) -> None:
        self._stream = stream

    def permutation(self, count: int) -> _Integers:
        """0..count-1 in random order."""
        return np.argsort(self._stream.random_raw(count), kind="stable")

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Numbers in [0, 1), multiples of 2 to the -53."""
        bits = self._stream.random_raw(count) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53


def sequential_plan(
    widths: npt.NDArray[np.integer[Any]], *, batch_size: int, max_pixels: int = 0, height: int = 1
) -> list[GlobalBatch]:
    """Batches for evaluation: all positions once, widest first, so that memory runs out at once or never.

    None has more than ``batch_size`` lines, nor more than ``max_pixels`` with padding unless it is a single
    line (0: no such limit); a column has ``height`` pixels.
    """
    order = np.argsort(-widths.astype(np.int64), kind="stable")
    batches, start = [], 0
    while start < order.size:
        size = batch_size or order.size
        if max_pixels:
            size = min(size, max(1, max_pixels // (height * max(1, int(widths[order[start]])))))
        batches.append(order[start : start + size])
        start += size
    return batches


def plan_facts(*, lines: int, data: str, settings: PlanSettings, seed: int) -> dict[str, int | str]:
    """What decides the order of every epoch, by name, for a checkpoint to keep.

    ``data`` is a digest of the lines and their widths. What has no influence is 0: the pixels and height
    where batches are cut by lines.
    """
    return {
        "lines": lines,
        "data": data,
        "global_lines": settings.global_lines,
        "global_pixels": settings.global_pixels if settings.by_pixels else 0,
        "height": settings.height if settings.by_pixels else 0,
        "window": settings.window,
        "seed": seed,
        "version": PLAN_VERSION,
    }


_FACT_NAMES: Mapping[str, str] = {
    "global_lines": "--global-batch-size",
    "global_pixels": "--batch-pixels",
    "height": "the height of lines",
    "window": "--shuffle-window",
    "seed": "--seed",
    "version": "the version of the epoch plan",
}


def describe_difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What two ``plan_facts`` differ in, as part of a sentence, or None: ``--seed (1 then, 2 now)``."""
    parts = []
    if saved.get("lines") != now["lines"]:
        parts.append(f"the data ({_count_of_lines(saved.get('lines'))} then, {now['lines']} now)")
    elif saved.get("data") != now["data"]:
        parts.append(f"the data ({_count_of_lines(now['lines'])} then and now, but not the same)")
    for fact, name in _FACT_NAMES.items():
        if saved.get(fact) != now[fact]:
            parts.append(f"{name} ({_value(saved.get(fact))} then, {_value(now[fact])} now)")
    return _joined(parts) if parts else None


def _count_of_lines(lines: int | None) -> str:
    return "an unknown number of lines" if lines is None else f"{lines} line{'' if lines == 1 else 's'}"


def _value(value: Any) -> str:
    return "unknown" if value is None else "not set" if value == 0 else str(value)


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _window_lines(lines: int, settings: PlanSettings) -> int:
    """Lines of every window but the last: a multiple of the batch, at most the setting, all about equal."""
    unit = 1 if settings.by_pixels else settings.global_lines
    largest = max(unit, settings.window // unit * unit)
    windows = max(1, -(-lines // largest))
    # A last window of a few lines could be neither mixed nor cut well.
    return max(unit, -(-lines // (windows * unit)) * unit)


def _cut_shards(sizes: _Integers, *, at_most: int) -> _Integers:
    """(shard, first position, lines) int64 (3, P) of shards cut in equal pieces; empty shards have none."""
    counts = -(-sizes // at_most)
    shards = np.repeat(np.arange(sizes.size), counts)
    number = np.arange(shards.size) - np.repeat(np.cumsum(counts) - counts, counts)
    size, count = sizes[shards], counts[shards]
    begins, ends = size * number // count, size * (number + 1) // count
    starts = np.cumsum(sizes) - sizes
    return np.stack([shards, starts[shards] + begins, ends - begins])


def _blur(widths: _Integers, settings: PlanSettings) -> float:
    """Half the range by which widths are blurred before sorting, as a share of each."""
    batch_lines: float = settings.global_lines
    if settings.by_pixels:
        # From integers: a mean of doubles depends on the order in which a processor adds them.
        mean_columns = max(1.0, int(widths.sum()) / widths.size)
        batch_lines = settings.global_pixels / (settings.height * mean_columns)
    return min(max(_BLUR * batch_lines / widths.size, _LEAST_BLUR), _MOST_BLUR)


def _starts_by_lines(lines: int, batch: int, random: _Random) -> _Integers:
    """Where batches of ``batch`` lines start; where they do not divide, any one of them is the short one."""
    starts = np.arange(0, lines, batch)
    missing = starts.size * batch - lines
    if missing:
        # Not the last: it would hold the widest lines of every epoch, and weigh them more than others.
        starts[int(random.uniform(1)[0] * starts.size) + 1 :] -= missing
    return starts


def _starts_by_columns(widths: _Integers, columns: int) -> _Integers:
    """Where batches start that take what fits: lines x widest <= ``columns``, or a single line."""
    starts, start = [], 0
    while start < widths.size:
        starts.append(start)
        most = max(1, columns // max(1, int(widths[start])))
        padded = np.maximum.accumulate(widths[start : start + most])
        padded *= np.arange(1, padded.size + 1)
        start += max(1, int(np.searchsorted(padded, columns, side="right")))
    return np.asarray(starts, dtype=np.int64)
