"""Line images from curved lines: the page warped so that a baseline lies horizontal, arc length kept.

Coordinates are (N, 2) float arrays of (x, y) in page pixels. Along a baseline a point has a *station*
(arc length from the start of the baseline, pixels) and an *offset* (distance from it, pixels, positive
below a baseline that runs to the right).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Points = npt.NDArray[np.float64]

MAX_LINE_PIXELS = 100_000_000
"""A line image larger than this is not made; the baseline of a real line does not fill a page."""

# A baseline and outline with more pairs of points than this would take gigabytes to compare.
_MAX_PAIRS = 20_000_000
# Outlines of more points than this are simplified, to this distance in pixels.
_MANY_POINTS = 50
_SIMPLIFY_TOLERANCE = 2.0
# Rounding reaches this share of the line's height from a corner, but no further than mid-segment.
_CORNER_REACH = 1 / 3


def straighten(page: Image.Image, baseline: Points, boundary: Points) -> Image.Image:
    """The line inside ``boundary`` (N, 2) with its ``baseline`` (M, 2) made horizontal, black outside.

    A baseline of two points is straightened by a rotation, any other by a mesh of quadrilaterals along
    it, its corners rounded. Bitonal pages are sampled at the nearest pixel, others bilinearly. The
    result is cut to the pixels that are not black and keeps the mode of the page; where all of it is
    black it has the full size.

    Raises:
        ValueError: the line is too long or too intricate; the message says how.
    """
    if len(baseline) == 2:
        straight = _rotate(page, baseline, boundary)
    else:
        straight = _unbend(page, baseline, boundary)
    return trim(straight)


def trim(image: Image.Image) -> Image.Image:
    """The image without its black margins; a black image stays as it is."""
    box = image.getbbox()
    return image if box is None else image.crop(box)


def mask_polygon(page: Image.Image, polygon: Points, box: tuple[int, int, int, int]) -> Image.Image:
    """What lies under ``polygon`` in the ``box`` (left, top, right, bottom) of the page, black elsewhere."""
    patch = page.crop(box)
    mask = Image.new("1", patch.size, 0)
    corners = [(float(x), float(y)) for x, y in polygon - box[:2]]
    ImageDraw.Draw(mask).polygon(corners, fill=1, outline=1)
    masked = Image.new(patch.mode, patch.size, 0)
    masked.paste(patch, (0, 0), mask)
    return masked


def pixel_box(polygon: Points) -> tuple[int, int, int, int]:
    """The pixels a polygon touches: left and top inclusive, right and bottom exclusive."""
    left, top = np.floor(polygon.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(polygon.max(axis=0)).astype(int).tolist()
    return left, top, right + 1, bottom + 1


def check_size(width: int, height: int) -> None:
    """Refuses an image too large to be a line.

    Raises:
        ValueError: it has more than MAX_LINE_PIXELS pixels.
    """
    if width * height > MAX_LINE_PIXELS:
        raise ValueError(f"its image would have {width} × {height} pixels")


def check_intricacy(outline: Points, baseline: Points) -> None:
    """Refuses an outline and baseline of more points than can be compared.

    Raises:
        ValueError: there are too many.
    """
    if len(outline) * len(baseline) > _MAX_PAIRS:
        raise ValueError(f"it has {len(baseline)} points on its baseline and {len(outline)} on its outline")


def _filter(page: Image.Image) -> Image.Resampling:
    return Image.Resampling.NEAREST if page.mode == "1" else Image.Resampling.BILINEAR


def rotation(
    patch: Image.Image, baseline: Points
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], tuple[int, int]]:
    """How to turn a patch so that a baseline of two points lies horizontal.

    Returns the rotation matrix (2, 2), the corner of the patch's upright bounding box in the coordinates
    of the turned patch (2,), and the box's size (width, height) in pixels.
    """
    along = baseline[1] - baseline[0]
    cos, sin = along / np.hypot(*along)
    turn = np.array([[cos, sin], [-sin, cos]])
    width, height = patch.width - 1, patch.height - 1
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ turn.T
    size = np.ceil(np.ptp(corners, axis=0)).astype(int) + 1
    check_size(int(size[0]), int(size[1]))
    return turn, corners.min(axis=0), (int(size[0]), int(size[1]))


def _rotate(page: Image.Image, baseline: Points, boundary: Points) -> Image.Image:
    patch = mask_polygon(page, boundary, pixel_box(boundary))
    turn, corner, size = rotation(patch, baseline)
    shift = turn.T @ corner
    matrix = (turn[0, 0], turn[1, 0], shift[0], turn[0, 1], turn[1, 1], shift[1])
    return patch.transform(size, Image.Transform.AFFINE, matrix, resample=_filter(page))


def _unbend(page: Image.Image, baseline: Points, boundary: Points) -> Image.Image:
    box = pixel_box(boundary)
    polygon = cut_outline(boundary)
    check_intricacy(polygon, baseline)
    patch = mask_polygon(page, polygon, box)
    course = _Course.along(baseline)
    stations, offsets = course.locate(polygon)
    start, end = math.floor(stations.min()), math.ceil(stations.max())
    top, bottom = math.floor(offsets.min()), math.floor(offsets.max()) + 1
    sections = course.sections(reach=_CORNER_REACH * (bottom - top), start=start, end=end)
    # Sections lie on whole pixels of the page: cut off, not rounded.
    upper = sections.centers + top * sections.normals - box[:2]
    lower = sections.centers + bottom * sections.normals - box[:2]
    upper[:-1], lower[:-1] = np.trunc(upper[:-1]), np.trunc(lower[:-1])
    columns = np.trunc(sections.stations - start).astype(int).tolist()
    mesh = [
        (
            (columns[i], 0, columns[i + 1], bottom - top),
            (*upper[i].tolist(), *lower[i].tolist(), *lower[i + 1].tolist(), *upper[i + 1].tolist()),
        )
        for i in range(len(columns) - 1)
        if columns[i + 1] > columns[i]
    ]
    size = (end - start + 1, bottom - top)
    check_size(*size)
    return patch.transform(size, Image.Transform.MESH, mesh, resample=_filter(page))


def cut_outline(boundary: Points) -> Points:
    """The boundary polygon of a bent line as it is masked: simplified if it has many points, corners cut."""
    if len(boundary) > _MANY_POINTS:
        boundary = simplify(boundary, _SIMPLIFY_TOLERANCE)
    return _cut_corners(boundary)


def simplify(line: Points, tolerance: float) -> Points:
    """The line (N, 2) with fewer points, nowhere further than ``tolerance`` from it (Douglas and Peucker)."""
    keep = np.zeros(len(line), dtype=bool)
    keep[[0, -1]] = True
    spans = [(0, len(line) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        relative = line[first + 1 : last] - line[first]
        chord = line[last] - line[first]
        share = np.clip(relative @ chord / max(float(chord @ chord), 1e-12), 0.0, 1.0)
        away = relative - share[:, None] * chord
        distance = np.hypot(away[:, 0], away[:, 1])
        furthest = int(distance.argmax())
        if distance[furthest] > tolerance:
            middle = first + 1 + furthest
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return line[keep]


def _cut_corners(polygon: Points) -> Points:
    """The polygon with its corners cut at a quarter of each edge.

    The first and last point stay unless they are the same, which closes the polygon.
    """
    edges = np.diff(polygon, axis=0)
    cut = np.stack([polygon[:-1] + edges / 4, polygon[:-1] + edges * 3 / 4], axis=1).reshape(-1, 2)
    if np.array_equal(polygon[0], polygon[-1]):
        return cut
    return np.concatenate([polygon[:1], cut, polygon[-1:]])


@dataclass(frozen=True, kw_only=True)
class _Sections:
    """Cross sections of a line from left to right, K of them."""

    stations: npt.NDArray[np.float64]
    centers: Points
    normals: Points


@dataclass(frozen=True, kw_only=True)
class _Course:
    """A baseline of K segments: its points, the segments' directions, lengths and first stations."""

    points: Points
    directions: Points
    normals: Points
    lengths: npt.NDArray[np.float64]
    stations: npt.NDArray[np.float64]

    @classmethod
    def along(cls, baseline: Points) -> _Course:
        steps = np.diff(baseline, axis=0)
        lengths = np.hypot(steps[:, 0], steps[:, 1])
        directions = steps / lengths[:, None]
        return cls(
            points=baseline,
            directions=directions,
            normals=_normals(directions),
            lengths=lengths,
            stations=np.concatenate([[0.0], np.cumsum(lengths)]),
        )

    def locate(self, points: Points) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Stations and offsets of points (N, 2), each seen from the segment it lies most squarely beside."""
        relative = points[:, None, :] - self.points[None, :-1, :]
        along = np.einsum("nkd,kd->nk", relative, self.directions)
        across = np.einsum("nkd,kd->nk", relative, self.normals)
        excess = np.maximum(np.maximum(-along, along - self.lengths), 0.0)
        nearest = np.argmin(excess + 1e-6 * np.abs(across), axis=1)
        rows = np.arange(len(points))
        return along[rows, nearest] + self.stations[nearest], across[rows, nearest]

    def sections(self, *, reach: float, start: float, end: float) -> _Sections:
        """Cross sections at both ends and around each corner, which is rounded within ``reach`` pixels."""
        bends = [self._bend(corner, reach=reach) for corner in range(1, len(self.lengths))]
        last = self.stations[-1]
        return _Sections(
            stations=np.concatenate([[start], *(bend.stations for bend in bends), [end]]),
            centers=np.concatenate(
                [
                    self.points[:1] + start * self.directions[:1],
                    *(bend.centers for bend in bends),
                    self.points[-1:] + (end - last) * self.directions[-1:],
                ]
            ),
            normals=np.concatenate([self.normals[:1], *(bend.normals for bend in bends), self.normals[-1:]]),
        )

    def _bend(self, corner: int, *, reach: float) -> _Sections:
        """Cross sections along the quadratic Bézier curve that rounds one corner."""
        before = min(reach, self.lengths[corner - 1] / 2)
        after = min(reach, self.lengths[corner] / 2)
        steps = max(round((before + after) / (reach / 2)), 1)
        t = np.linspace(0.0, 1.0, steps + 1)[:, None]
        entry = before * self.directions[corner - 1]
        leave = after * self.directions[corner]
        tangents = (1 - t) * entry + t * leave
        tangents /= np.maximum(np.hypot(tangents[:, :1], tangents[:, 1:]), 1e-9)
        return _Sections(
            stations=(self.stations[corner] - (1 - t) ** 2 * before + t**2 * after)[:, 0],
            centers=self.points[corner] - (1 - t) ** 2 * entry + t**2 * leave,
            normals=_normals(tangents),
        )


def _normals(directions: Points) -> Points:
    return np.stack([-directions[:, 1], directions[:, 0]], axis=1)
