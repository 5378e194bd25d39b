"""Images of single lines cut out of a page, along a baseline or as a box."""

from __future__ import annotations

import numpy as np
from PIL import Image

from distrib.ground_truth.legacy_straighten import straighten_legacy
from distrib.ground_truth.problems import GroundTruthProblem
from distrib.ground_truth.records import Line, LineType, SkipReason
from distrib.ground_truth.straighten import Points, straighten

MIN_BASELINE = 5.0
"""Baselines shorter than this many pixels carry no text."""


class ExtractionProblem(GroundTruthProblem):
    """A line whose image cannot be cut out of its page."""


class LineExtractor:
    """Cuts lines out of one page image (mode ``1``, ``L`` or ``RGB``).

    Lines of type ``baselines`` are masked by their boundary polygon and straightened along their
    baseline, ``legacy`` in the slower way of kraken before 5; lines of type ``bbox`` are cropped.
    """

    def __init__(self, page: Image.Image, *, line_type: LineType, legacy: bool = False) -> None:
        self._page = page
        self._line_type = line_type
        self._straighten = straighten_legacy if legacy else straighten

    def __call__(self, line: Line) -> Image.Image:
        """The image of a line, mode as the page's.

        Raises:
            ExtractionProblem: the line's geometry is missing, degenerate or outside the page.
        """
        if line.boundary is None or not line.boundary:
            raise ExtractionProblem(SkipReason.NO_POLYGON, f"line {line.id} has no boundary polygon")
        if self._line_type == "bbox":
            return crop_box(self._page, _points(line.boundary))
        if line.baseline is None or not line.baseline:
            raise ExtractionProblem(SkipReason.NO_BASELINE, f"line {line.id} has no baseline")
        baseline, boundary = _points(line.baseline), _points(line.boundary)
        _check(self._page, line.id, baseline, boundary)
        return self._straighten(self._page, baseline, boundary)


def crop_box(page: Image.Image, boundary: Points) -> Image.Image:
    """The part of the page inside the bounding box of ``boundary`` (N, 2).

    Raises:
        ExtractionProblem: the box is empty or outside the page.
    """
    left, top = np.floor(boundary.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(boundary.max(axis=0)).astype(int).tolist()
    if left < 0 or top < 0 or right > page.width or bottom > page.height:
        raise ExtractionProblem(
            SkipReason.OUTSIDE_IMAGE,
            f"the box ({left}, {top}, {right}, {bottom}) leaves the page of {page.width} × {page.height} pixels",
        )
    if right <= left or bottom <= top:
        raise ExtractionProblem(
            SkipReason.DEGENERATE_POLYGON, f"the box ({left}, {top}, {right}, {bottom}) is empty"
        )
    return page.crop((left, top, right, bottom))


def _points(points: tuple[tuple[float, float], ...]) -> Points:
    return np.asarray(points, dtype=np.float64)


def _check(page: Image.Image, line_id: str, baseline: Points, boundary: Points) -> None:
    length = float(np.hypot(*np.diff(baseline, axis=0).T).sum())
    if length < MIN_BASELINE:
        raise ExtractionProblem(
            SkipReason.SHORT_BASELINE,
            f"the baseline of line {line_id} is {length:.1f} pixels long, at least {MIN_BASELINE:g} are needed",
        )
    if len(boundary) < 3:
        raise ExtractionProblem(
            SkipReason.DEGENERATE_POLYGON,
            f"the boundary of line {line_id} has {len(boundary)} points, at least 3 are needed",
        )
    for name, points in (("boundary", boundary), ("baseline", baseline)):
        if points.min() < 0 or (points.max(axis=0) >= page.size).any():
            raise ExtractionProblem(
                SkipReason.OUTSIDE_IMAGE,
                f"the {name} of line {line_id} leaves the page of {page.width} × {page.height} pixels",
            )
