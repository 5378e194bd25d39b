"""Collects the lines of a page: unique ids, and a reason for each line whose geometry is unusable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from distrib.ground_truth.geometry import Box, box_corners, on_pixels
from distrib.ground_truth.records import BaseDirection, Line, LineType, Point, Skip, SkipReason, Split
from distrib.ground_truth.text import single_line

_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": "test"}


class LineProblem(Exception):
    """A line that cannot be used; ``reason`` and ``detail`` become its skip."""

    def __init__(self, reason: SkipReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class LineShape:
    """Where a file says a line is; read on demand, as a line type needs only a part of it.

    ``baseline`` and ``polygon`` return no points where the file has none and raise ValueError on
    coordinates that are none; ``box`` likewise returns None.
    """

    baseline: Callable[[], tuple[Point, ...]]
    polygon: Callable[[], tuple[Point, ...]]
    box: Callable[[], Box | None]


@dataclass(kw_only=True)
class PageLines:
    """The lines and skips of one page, in document order."""

    source: Path
    line_type: LineType
    lines: list[Line] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    _used_ids: set[str] = field(default_factory=set)

    def add(
        self,
        *,
        line_id: str | None,
        text: str,
        shape: LineShape,
        languages: tuple[str, ...],
        split: Split | None,
        base_dir: BaseDirection | None,
    ) -> None:
        """Append a line, or a skip where the line type needs a geometry it does not have."""
        unique_id = self._unique_id(line_id)
        try:
            baseline, boundary = self._geometry(shape)
        except LineProblem as problem:
            self.skips.append(
                Skip(source=self.source, line_id=unique_id, reason=problem.reason, detail=problem.detail)
            )
            return
        self.lines.append(
            Line(
                id=unique_id,
                text=single_line(text),
                baseline=baseline,
                boundary=boundary,
                languages=languages,
                split=split,
                base_dir=base_dir,
            )
        )

    def skip(self, line_id: str | None, reason: SkipReason, detail: str) -> None:
        """Leave out a line for a reason its place in the document gives."""
        skip = Skip(source=self.source, line_id=self._unique_id(line_id), reason=reason, detail=detail)
        self.skips.append(skip)

    def _unique_id(self, line_id: str | None) -> str:
        # Reports and sample keys name a line by source and id, and real files repeat or omit ids.
        number = len(self.lines) + len(self.skips) + 1
        unique_id = line_id or f"line-{number}"
        while unique_id in self._used_ids:
            unique_id = f"{line_id or 'line'}-{number}"
            number += 1
        self._used_ids.add(unique_id)
        return unique_id

    def _geometry(self, shape: LineShape) -> tuple[tuple[Point, ...] | None, tuple[Point, ...]]:
        return (None, _box_boundary(shape)) if self.line_type == "bbox" else _curved(shape)


def parse_split(value: str | None) -> Split | None:
    """The split a tag names, None for anything that is not one."""
    return _SPLITS.get((value or "").strip())


def _curved(shape: LineShape) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    baseline = _read("baseline", shape.baseline, SkipReason.NO_BASELINE)
    if not baseline:
        raise LineProblem(
            SkipReason.NO_BASELINE,
            "the line has no baseline; --linetype bbox uses lines without one",
        )
    if len(set(baseline)) < 2:
        raise LineProblem(SkipReason.SHORT_BASELINE, "the baseline is a single point")
    polygon = _read("polygon", shape.polygon, SkipReason.NO_POLYGON)
    if not polygon:
        raise LineProblem(
            SkipReason.NO_POLYGON, "the line has no boundary polygon; draw one or leave the line out"
        )
    if len(set(polygon)) < 3:
        raise LineProblem(SkipReason.DEGENERATE_POLYGON, "the boundary polygon has fewer than three corners")
    return baseline, polygon


def _box_boundary(shape: LineShape) -> tuple[Point, ...]:
    try:
        box = shape.box()
    except ValueError as error:
        raise LineProblem(SkipReason.NO_POLYGON, f"the line's bounding box is unreadable: {error}") from error
    if box is None:
        raise LineProblem(SkipReason.NO_POLYGON, "the line has neither a bounding box nor a boundary polygon")
    left, top, right, bottom = (int(edge) for edge in box)
    if right <= left or bottom <= top:
        raise LineProblem(
            SkipReason.DEGENERATE_POLYGON,
            f"the line's bounding box is {right - left} × {bottom - top} pixels",
        )
    return box_corners((left, top, right, bottom))


def _read(name: str, points: Callable[[], tuple[Point, ...]], reason: SkipReason) -> tuple[Point, ...]:
    try:
        return on_pixels(points())
    except ValueError as error:
        raise LineProblem(reason, f"the line's {name} is unreadable: {error}") from error
