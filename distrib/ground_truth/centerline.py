"""Centre-line normalisation of line images, after the ``lineest`` module of OCRopus (T. Breuel).

The ridge of the smoothed ink is taken for the centre of the line. Columns are shifted to make it
straight, and what lies within a multiple of the ink's mean distance from it is scaled to the height
wanted. The smoothing kernels are as large as the line. Across the line that leaves so little detail that
some twenty moments of each column say all, and only these are smoothed along it, in the frequency domain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage
import scipy.special
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
# Terms of the series that stands for the smoothing across the line: 1 / 20! is below what a double resolves.
_TERMS = 20
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
    shades = np.arange(256) / np.float64(ink.max())
    factors = _gaussian_factors(height)
    moments = _smooth_rows(factors.T @ shades[ink], height * _SMOOTHNESS)
    profile = _mean_columns(factors, int(height * 0.5)) * _PROFILE_SHARE
    ridge = np.vstack((moments, _mean_rows(moments))).T @ np.hstack((factors, profile)).T
    # Rows are whole numbers before and after: OCRopus cuts the smoothed ones off.
    smooth = scipy.ndimage.gaussian_filter1d(ridge.argmax(axis=1).astype(np.int64), height * _EXTRA)
    return np.asarray(smooth, dtype=np.int64)


def _find_reach(ink: Pixels, center: npt.NDArray[np.int64]) -> int:
    """How many rows to keep on either side of the centre."""
    distance = np.arange(ink.shape[0], dtype=np.int32)[:, None] - center.astype(np.int32)
    inked = ink != 0
    np.abs(distance, out=distance)
    distance *= inked
    return int(1 + _RANGE * float(distance.sum(dtype=np.int64)) / int(np.count_nonzero(inked)))


def _shift_columns(pixels: Pixels, center: npt.NDArray[np.int64], reach: int, paper: int) -> Pixels:
    """Twice ``reach`` rows of the image around its centre (2R, W), paper where they leave it."""
    height, width = pixels.shape
    # Column by column in memory, so that what is kept of each is one run of bytes.
    padded = np.full((width, height + 2 * reach), paper, dtype=np.uint8)
    padded[:, reach : reach + height] = pixels.T
    runs = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach, axis=1)
    return np.ascontiguousarray(runs[np.arange(width), center].T)


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


def _gaussian_factors(size: int) -> Floats:
    """F (size, terms) with F @ F.T the matrix (size, size) that smooths a column, nothing beyond its ends.

    Its Gaussian has half the column's length as standard deviation, so that in units of it rows lie at x
    and y within 1 of the middle, and exp(-(x - y)**2 / 2) = exp(-x**2 / 2) exp(-y**2 / 2) exp(x y), of
    which the last is a power series in x y. With these few terms nothing is left above rounding.
    """
    sigma = size * 0.5
    weight = _gaussian_weights(sigma).max()
    x = (np.arange(size) - (size - 1) / 2) / sigma
    terms = np.arange(_TERMS)
    scale = np.sqrt(weight / scipy.special.factorial(terms))
    return np.asarray(np.exp(-0.5 * x**2)[:, None] * x[:, None] ** terms * scale, dtype=np.float64)


def _mean_columns(rows: Floats, length: int) -> Floats:
    """The mean of ``length`` neighbours up and down, nothing beyond the ends; (H, W) like the rows."""
    height, length = rows.shape[0], max(length, 1)
    sums = np.zeros((height + 1, rows.shape[1]), dtype=np.float64)
    np.cumsum(rows, axis=0, out=sums[1:])
    first = np.arange(height) - length // 2
    inside = sums[(first + length).clip(0, height)] - sums[first.clip(0, height)]
    return np.asarray(inside / np.float64(length), dtype=np.float64)


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
    half = width // 2
    inside = np.concatenate(
        (sums[:, width - half : width], sums[:, width:] - sums[:, : width - half]), axis=1
    )
    return np.asarray(inside / np.float64(width), dtype=np.float64)
