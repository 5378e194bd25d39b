"""Line images as kraken made them before version 5, for models that were trained on those.

Outlines are cut the same way as in straighten; the page is warped by an affine map for each triangle
between the points of outline and baseline, and a baseline of two points is rotated without
interpolation. Slower than straighten, and what of the outline lies before the start or beyond the end
of the baseline is pressed together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from PIL import Image
from scipy.spatial import Delaunay

from distrib.ground_truth.straighten import (
    Points,
    check_intricacy,
    check_size,
    cut_outline,
    mask_polygon,
    pixel_box,
    rotation,
    trim,
)

Pixels = npt.NDArray[np.uint8]

# Outside of any patch, so that nothing is sampled there.
_NOWHERE = -2.0


def straighten_legacy(page: Image.Image, baseline: Points, boundary: Points) -> Image.Image:
    """The line inside ``boundary`` (N, 2) with its ``baseline`` (M, 2) made horizontal, black outside.

    The result is cut to the pixels that are not black and keeps the mode of the page.

    Raises:
        scipy.spatial.QhullError: outline and baseline lie on one line.
        ValueError: the line is too long or too intricate; the message says how.
    """
    if len(baseline) == 2:
        return trim(_rotate(page, baseline, boundary))
    return trim(_unbend(page, baseline, boundary))


def _rotate(page: Image.Image, baseline: Points, boundary: Points) -> Image.Image:
    patch = mask_polygon(page, boundary, pixel_box(boundary))
    turn, corner, size = rotation(patch, baseline)
    if page.mode != "RGB":
        # Grey and bitonal pages were turned about the corner of the patch and not moved back into view.
        corner = np.zeros(2)
    # Rows come before columns in arrays, so the rotation is transposed along both diagonals.
    matrix, offset = turn.T[::-1, ::-1], (turn.T @ corner)[::-1]
    return _sample(
        patch,
        lambda channel, order: scipy.ndimage.affine_transform(
            channel, matrix, offset, output_shape=size[::-1], order=order, prefilter=False
        ),
        order=0,
    )


def _unbend(page: Image.Image, baseline: Points, boundary: Points) -> Image.Image:
    box = pixel_box(boundary)
    outline = cut_outline(boundary)
    check_intricacy(outline, baseline)
    patch = mask_polygon(page, outline, box)
    straight = _unroll(outline, baseline)
    start = np.floor(straight.min(axis=0))
    width, height = (np.floor(straight.max(axis=0) - start).astype(int) + 1).tolist()
    check_size(width, height)
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(baseline, axis=0).T))])
    targets = np.concatenate([straight, np.stack([arc, np.zeros_like(arc)], axis=1)]) - start
    sources = np.concatenate([outline, baseline]) - box[:2]
    where = _map_pixels(targets, sources, width, height)
    return _sample(
        patch,
        lambda channel, order: scipy.ndimage.map_coordinates(
            channel, where, order=order, output=np.float32, prefilter=False
        ).reshape(height, width),
        order=1,
    )


def _sample(
    patch: Image.Image, warp: Callable[[Pixels, int], npt.NDArray[Any]], *, order: int
) -> Image.Image:
    """The patch with each channel (H, W) warped by splines of ``order``, of order 0 if it is bitonal."""
    if patch.mode == "1":
        warped = warp(np.asarray(patch.convert("L")), 0)
        return Image.fromarray(warped.astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    channels = [warp(np.asarray(channel), order).astype(np.uint8) for channel in patch.split()]
    return Image.merge(patch.mode, [Image.fromarray(channel) for channel in channels])


def _unroll(points: Points, baseline: Points) -> Points:
    """Points (N, 2) as (station, offset) of the nearest point of the baseline."""
    steps = np.diff(baseline, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    starts = np.concatenate([[0.0], np.cumsum(lengths)])[:-1]
    relative = points[:, None] - baseline[None, :-1]
    share = np.clip(np.einsum("nkd,kd->nk", relative, steps) / lengths**2, 0.0, 1.0)
    away = relative - share[..., None] * steps
    distance = np.hypot(away[..., 0], away[..., 1])
    nearest = distance.argmin(axis=1)
    rows = np.arange(len(points))
    side = steps[nearest, 0] * relative[rows, nearest, 1] - steps[nearest, 1] * relative[rows, nearest, 0]
    station = starts[nearest] + share[rows, nearest] * lengths[nearest]
    return np.stack([station, np.sign(side) * distance[rows, nearest]], axis=1)


def _map_pixels(targets: Points, sources: Points, width: int, height: int) -> npt.NDArray[np.float64]:
    """Where each pixel of the result comes from, (2, H·W) as (row, column) of the patch."""
    triangles = Delaunay(targets)
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)
    found = triangles.find_simplex(pixels)
    # One affine map (3, 2) a triangle, from homogeneous target to source coordinates.
    corners = np.concatenate([targets, np.ones((len(targets), 1))], axis=1)[triangles.simplices]
    maps = np.linalg.pinv(corners) @ sources[triangles.simplices]
    here = maps[found]
    where = pixels[:, :1] * here[:, 0] + pixels[:, 1:] * here[:, 1] + here[:, 2]
    where[found < 0] = _NOWHERE
    # Keeps points on the edge of the patch from falling off it.
    return np.asarray(where.T[::-1].round(6))
