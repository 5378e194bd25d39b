"""Centre-line normalisation of line images, after the ``lineest`` module of OCRopus (T. Breuel).

The ridge of the smoothed ink is taken for the centre of the line. Columns are shifted to make it
straight, and what lies within a multiple of the ink's mean distance from it is scaled to the height
wanted. The smoothing kernels are as large as the line, so they are applied as a matrix product across
the line and in the frequency domain along it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

# The parameters of OCRopus: how far from the centre in mean distances of the ink, how long the smoothing
# along the line and of the centre itself in heights of the line.
_RANGE = 4.0
_SMOOTHNESS = 1.0
_EXTRA = 0.3
# A Gaussian is cut off at this many standard deviations.
_TRUNCATE = 4.0
# Share of the line's overall profile, which decides where a stretch of the line is blank.
_PROFILE_SHARE = 0.001


def normalize_centerline(image: Image.Image, height: int) -> Image.Image:
    """A grey line image (mode ``L``, dark ink) straightened along its centre and ``height`` pixels high.

    An image without any ink is scaled as it is.
    """
    pixels = np.asarray(image)
    paper = int(pixels.max())
    ink = paper - pixels
    if not ink.any():
        return image.resize((max(int(image.width * height / image.height), 1), height))
    center = _find_center(ink)
    reach = _find_reach(ink, center)
    straight = _shift_columns(pixels, center, reach, paper)
    return _scale(straight, height, paper)


def estimate_width(width: int, height: int, target: int) -> int:
    """The width to expect of a normalised line of ``target`` height, from the size of its image.

    It depends on the ink: what is kept is most often about twice as high as the image.
    """
    return max(int(width * target / (2 * height)), 1)


def _find_center(ink: Pixels) -> npt.NDArray[np.int64]:
    """The row of the centre of the line in each column, (W,), of ink (H, W)."""
    height = ink.shape[0]
    line = ink.astype(np.float64) / np.float64(ink.max())
    ridge = _smooth_rows(_gaussian_band(height, height * 0.5) @ line, height * _SMOOTHNESS)
    profile = _box_band(height, int(height * 0.5)) @ _mean_rows(ridge)
    ridge += np.float64(_PROFILE_SHARE) * profile
    rows = ridge.argmax(axis=0).astype(np.int64)
    # Rows are whole numbers before and after: OCRopus cuts the smoothed ones off.
    smooth = scipy.ndimage.gaussian_filter1d(rows, height * _EXTRA)
    return np.asarray(smooth, dtype=np.int64)


def _find_reach(ink: Pixels, center: npt.NDArray[np.int64]) -> int:
    """How many rows to keep on either side of the centre."""
    rows = np.arange(ink.shape[0], dtype=np.int32)[:, None]
    inked = ink != 0
    distance = np.abs(rows - center.astype(np.int32)[None, :])
    return int(1 + _RANGE * float(distance.sum(where=inked)) / int(inked.sum()))


def _shift_columns(pixels: Pixels, center: npt.NDArray[np.int64], reach: int, paper: int) -> Pixels:
    """Twice ``reach`` rows of the image around its centre (2R, W), paper where they leave it."""
    height, width = pixels.shape
    padded = np.full((height + 2 * reach, width), paper, dtype=np.uint8)
    padded[reach : reach + height] = pixels
    rows = np.arange(2 * reach)[:, None] + center[None, :]
    return np.take_along_axis(padded, rows, axis=0)


def _scale(pixels: Pixels, height: int, paper: int) -> Image.Image:
    """Bilinear scaling that maps the centre of the first pixel to the centre of the first pixel."""
    step = pixels.shape[0] / height
    size = (max(int(pixels.shape[1] / step), 1), height)
    shift = 0.5 - 0.5 * step
    return Image.fromarray(pixels).transform(
        size,
        Image.Transform.AFFINE,
        (step, 0.0, shift, 0.0, step, shift),
        resample=Image.Resampling.BILINEAR,
        fillcolor=paper,
    )


def _gaussian_weights(sigma: float) -> Floats:
    radius = int(_TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _gaussian_band(size: int, sigma: float) -> Floats:
    """The matrix (size, size) that smooths a column, nothing beyond its ends."""
    weights = _gaussian_weights(sigma)
    radius = len(weights) // 2
    offsets = np.arange(size)[None, :] - np.arange(size)[:, None] + radius
    return np.where((offsets >= 0) & (offsets < len(weights)), weights[offsets.clip(0, 2 * radius)], 0)


def _box_band(size: int, length: int) -> Floats:
    """The matrix (size, size) that takes the mean of ``length`` neighbours, nothing beyond the ends."""
    length = max(length, 1)
    offsets = np.arange(size)[None, :] - np.arange(size)[:, None] + length // 2
    return ((offsets >= 0) & (offsets < length)).astype(np.float64) / np.float64(length)


def _smooth_rows(rows: Floats, sigma: float) -> Floats:
    """Each row (H, W) smoothed by a Gaussian, nothing beyond its ends."""
    weights = _gaussian_weights(sigma)
    radius, width = len(weights) // 2, rows.shape[1]
    length = scipy.fft.next_fast_len(width + 2 * radius, real=True)
    spectrum = scipy.fft.rfft(rows, length, axis=1)
    spectrum *= scipy.fft.rfft(weights, length)
    return np.asarray(scipy.fft.irfft(spectrum, length, axis=1)[:, radius : radius + width])


def _mean_rows(rows: Floats) -> Floats:
    """The mean of as many neighbours as a row has pixels, nothing beyond its ends; (H, W) like the rows."""
    height, width = rows.shape
    sums = np.zeros((height, width + 1), dtype=np.float64)
    np.cumsum(rows, axis=1, out=sums[:, 1:])
    first = np.arange(width) - width // 2
    inside = sums[:, (first + width).clip(0, width)] - sums[:, first.clip(0, width)]
    return np.asarray(inside / np.float64(width), dtype=np.float64)
