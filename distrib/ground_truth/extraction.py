"""Images of single lines cut out of a page, along a baseline or as a box."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.spatial import QhullError

from distrib.ground_truth.legacy_straighten import straighten_legacy
from distrib.ground_truth.problems import GroundTruthProblem
from distrib.ground_truth.records import Line, LineType, Point, SkipReason
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
            return crop_box(self._page, line.boundary, name=f"line {line.id}")
        if line.baseline is None or not line.baseline:
            raise ExtractionProblem(SkipReason.NO_BASELINE, f"line {line.id} has no baseline")
        baseline, boundary = _distinct(_points(line.baseline)), _distinct(_points(line.boundary))
        _check(self._page, line.id, baseline, boundary)
        try:
            return self._straighten(self._page, baseline, boundary)
        except (QhullError, ValueError) as error:
            raise ExtractionProblem(
                SkipReason.EXTRACTION_FAILED, f"line {line.id} cannot be straightened: {error}"
            ) from error


def crop_box(page: Image.Image, boundary: Sequence[Point], *, name: str = "the line") -> Image.Image:
    """The part of the page inside the bounding box of ``boundary``; ``name`` stands for it in messages.

    Raises:
        ExtractionProblem: the box is empty or outside the page.
    """
    points = _points(boundary)
    left, top = np.floor(points.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(points.max(axis=0)).astype(int).tolist()
    box = (left, top, right, bottom)
    if left < 0 or top < 0 or right > page.width or bottom > page.height:
        raise ExtractionProblem(
            SkipReason.OUTSIDE_IMAGE,
            f"the box {box} of {name} leaves the page of {page.width} × {page.height} pixels",
        )
    if right <= left or bottom <= top:
        raise ExtractionProblem(SkipReason.DEGENERATE_POLYGON, f"the box {box} of {name} is empty")
    return page.crop(box)


def _points(points: Sequence[Point]) -> Points:
    return np.asarray(points, dtype=np.float64)


def _distinct(points: Points) -> Points:
    """The points (N, 2) without immediate repetitions, which would be edges without length."""
    moved = (np.diff(points, axis=0) != 0).any(axis=1)
    return np.asarray(points[np.concatenate([[True], moved])])


def _check(page: Image.Image, line_id: str, baseline: Points, boundary: Points) -> None:
    for name, points in (("boundary", boundary), ("baseline", baseline)):
        if not ((points >= 0).all() and (points < page.size).all()):
            raise ExtractionProblem(
                SkipReason.OUTSIDE_IMAGE,
                f"the {name} of line {line_id} leaves the page of {page.width} × {page.height} pixels",
            )
    length = float(np.hypot(*np.diff(baseline, axis=0).T).sum())
    if length < MIN_BASELINE:
        raise ExtractionProblem(
            SkipReason.SHORT_BASELINE,
            f"the baseline of line {line_id} is {length:.1f} pixels long, less than {MIN_BASELINE:g}",
        )
    if np.linalg.matrix_rank(boundary - boundary[0]) < 2:
        raise ExtractionProblem(
            SkipReason.DEGENERATE_POLYGON, f"the boundary of line {line_id} encloses nothing"
        )
