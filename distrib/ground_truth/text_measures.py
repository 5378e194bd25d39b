"""Many texts at once: normalised and in display order as one string, measured as one array of code points.

Millions of texts take seconds. They are joined with U+0000 between them, because no normalisation form moves
or composes anything across it; only texts that display order may change are looked at one by one.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from distrib.ground_truth.display_order import UNMOVED_CLASSES, display_order
from distrib.ground_truth.records import BaseDirection
from distrib.ground_truth.text import TextPipeline

Points = npt.NDArray[np.uint32]

_SEPARATOR = "\0"
_CODE_POINTS = sys.maxunicode + 1
# As TextPipeline's: the information separators are no spaces, but str.strip takes them for such.
_OTHER_SPACES = re.compile(r"[^\S\x1c-\x1f ]")
_SPACES_AT_ENDS = re.compile(rf"\s+{_SEPARATOR}\s*|{_SEPARATOR}\s+")

_KNOWN, _MOVED, _SPACE, _OTHER_SPACE = 1, 2, 4, 8
"""Flags of a code point: ever seen, perhaps moved by display order, a space, one other than U+0020."""


class TextMeasures(NamedTuple):
    """Of n texts: ``lengths`` int64 (n,) in code points, ``repeats`` int64 (n,) how many of them equal the
    one before."""

    lengths: npt.NDArray[np.int64]
    repeats: npt.NDArray[np.int64]


class TextMeter:
    """Measures texts as a TextPipeline makes them, and counts their characters over all calls."""

    def __init__(self, pipeline: TextPipeline, *, ignored: Iterable[str] = ()) -> None:
        """``ignored`` characters are taken out of the texts once these are normalised."""
        self._normalize = _ChunkNormalizer(pipeline)
        self._ignored = np.array([ord(character) for character in ignored], dtype=np.uint32)
        self._counts = np.zeros(_CODE_POINTS, dtype=np.int64)

    @property
    def alphabet(self) -> Counter[str]:
        """The characters of all texts so far and how often they occur, in code point order."""
        found = np.flatnonzero(self._counts)
        return Counter({chr(point): int(self._counts[point]) for point in found.tolist()})

    def __call__(self, texts: Sequence[str], directions: Sequence[BaseDirection | None]) -> TextMeasures:
        """Measure texts and the directions stated for them; some thousand at once are measured best."""
        points, apart = self._normalize(texts, directions)
        if not texts:
            return TextMeasures(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        points = self._kept(points, self._ignored[self._ignored != 0])
        ends = np.append(np.flatnonzero(points == 0), len(points))
        lengths = np.diff(ends, prepend=-1) - 1
        repeated = np.flatnonzero((points[1:] == points[:-1]) & (points[1:] != 0))
        repeats = np.bincount(np.searchsorted(ends, repeated), minlength=len(ends))
        counts = np.bincount(points, minlength=1)
        self._counts[1 : len(counts)] += counts[1:]
        for row, text in apart.items():
            alone = self._kept(_code_points(text), self._ignored)
            lengths[row] = len(alone)
            repeats[row] = np.count_nonzero(alone[1:] == alone[:-1])
            np.add.at(self._counts, alone, 1)
        return TextMeasures(lengths, repeats)

    @staticmethod
    def _kept(points: Points, ignored: Points) -> Points:
        return points[~np.isin(points, ignored)] if ignored.size else points


class _Chunk(NamedTuple):
    """Normalised texts as ``points`` uint32, joined by zeros, and those that hold U+0000, by position."""

    points: Points
    apart: dict[int, str]


class _ChunkNormalizer:
    """Applies a TextPipeline to many texts at once, each of its steps only where it has something to do."""

    def __init__(self, pipeline: TextPipeline) -> None:
        self._pipeline = pipeline
        # What is known of a code point so far, as flags.
        self._flags = np.zeros(_CODE_POINTS, dtype=np.uint8)
        self._flags[0] = _KNOWN

    def __call__(self, texts: Sequence[str], directions: Sequence[BaseDirection | None]) -> _Chunk:
        joined, apart = _SEPARATOR.join(texts), {}
        if joined.count(_SEPARATOR) != max(len(texts) - 1, 0):
            apart = {row: text for row, text in enumerate(texts) if _SEPARATOR in text}
            joined = _SEPARATOR.join("" if row in apart else text for row, text in enumerate(texts))
            apart = {row: self._pipeline(text, directions[row]) for row, text in apart.items()}
        if self._pipeline.normalization is not None:
            joined = unicodedata.normalize(self._pipeline.normalization, joined)
        points = _code_points(joined)
        flags = self._flags_of(points)
        if self._pipeline.normalize_whitespace and _has_spaces_to_change(points, flags):
            joined = _SPACES_AT_ENDS.sub(_SEPARATOR, _OTHER_SPACES.sub(" ", joined)).strip()
            points = _code_points(joined)
            flags = self._flags_of(points)
        if self._pipeline.reorder:
            points = self._reorder(joined, points, flags, directions)
        return _Chunk(points, apart)

    def _flags_of(self, points: Points) -> npt.NDArray[np.uint8]:
        flags = self._flags[points]
        if not flags.all():
            for point in np.unique(points[flags == 0]).tolist():
                self._flags[point] = _flags_of(chr(point))
            flags = self._flags[points]
        return flags

    def _reorder(
        self,
        joined: str,
        points: Points,
        flags: npt.NDArray[np.uint8],
        directions: Sequence[BaseDirection | None],
    ) -> Points:
        """The code points with those texts in display order that it may change."""
        if self._pipeline.base_dir != "auto":
            directions = [self._pipeline.base_dir] * len(directions)
        rows = {row for row, direction in enumerate(directions) if direction == "R"}
        moved = np.flatnonzero(flags & _MOVED)
        rows.update(np.unique(np.searchsorted(np.flatnonzero(points == 0), moved)).tolist())
        if not rows:
            return points
        parts = joined.split(_SEPARATOR)
        for row in rows:
            parts[row] = display_order(parts[row], directions[row])
        return _code_points(_SEPARATOR.join(parts))


def _flags_of(character: str) -> int:
    flags = _KNOWN
    if unicodedata.bidirectional(character) not in UNMOVED_CLASSES:
        flags |= _MOVED
    if character.isspace():
        flags |= _SPACE
    if _OTHER_SPACES.match(character):
        flags |= _OTHER_SPACE
    return flags


def _has_spaces_to_change(points: Points, flags: npt.NDArray[np.uint8]) -> bool:
    """Whether any of the texts begins or ends with a space or holds another than U+0020."""
    if (flags & _OTHER_SPACE).any():
        return True
    spaces, ends = (flags & _SPACE) != 0, points == 0
    inner = (spaces[1:] & ends[:-1]).any() or (spaces[:-1] & ends[1:]).any()
    return bool(inner or spaces[:1].any() or spaces[-1:].any())


def _code_points(text: str) -> Points:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
