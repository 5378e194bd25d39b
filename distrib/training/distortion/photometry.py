"""How the ink of a line looks: stroke weight, blur, erased spots, contrast, shading and noise.

Images are float (N, C, H, W) in 0..1, ink high, and have paper (0) from a line's width on; widths (N,). What
is returned is as large, and the same up to a line's width wherever the batch ends. Past it there may be ink,
which the caller has to take away: a line then looks the same in any batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from distrib.training.distortion.curves import knots, sent, sent_together, smooth_curves
from distrib.training.distortion.draws import Draws, Floats

Widths = npt.NDArray[np.int64]


def change_strokes(images: torch.Tensor, amounts: Floats) -> torch.Tensor:
    """Strokes a pixel thicker on each side where ``amounts`` (N,) is 1 and thinner where it is -1.

    In between, a mixture of that and the original: grey dilation and erosion by a cross of 3 pixels.
    """
    signs, sizes = sent_together(images, np.where(amounts < 0, -1.0, 1.0), np.abs(amounts))
    sign = signs[:, None, None, None]
    signed = images * sign
    around = _framed(signed, 1, 1)
    most = torch.maximum(signed, around[:, :, 1:-1, :-2])
    for neighbour in (around[:, :, 1:-1, 2:], around[:, :, :-2, 1:-1], around[:, :, 2:, 1:-1]):
        torch.maximum(most, neighbour, out=most)
    return most.mul_(sign).sub_(images).mul_(sizes[:, None, None, None]).add_(images)


def blur(images: torch.Tensor, sigmas: Floats) -> torch.Tensor:
    """Gaussian blur, ``sigmas`` (N, 2) pixels in x and in y."""
    of_axes = sent_together(images, _gaussian(sigmas[:, 0]), _gaussian(sigmas[:, 1]))
    for weights, dimension in zip(of_axes, (3, 2), strict=True):
        radius = weights.shape[1] - 1
        size = images.shape[dimension]
        around = _framed(images, radius, 0) if dimension == 3 else _framed(images, 0, radius)
        of_line = weights[:, :, None, None, None].unbind(1)
        images = images * of_line[0]
        for step in range(1, radius + 1):
            left = around.narrow(dimension, radius - step, size)
            images += (left + around.narrow(dimension, radius + step, size)).mul_(of_line[step])
    return images


def _framed(images: torch.Tensor, columns: int, rows: int) -> torch.Tensor:
    """The images with margins: their outermost rows go on, left and right of them is paper."""
    return functional.pad(functional.pad(images, (0, 0, rows, rows), mode="replicate"), (columns, columns))


def _gaussian(sigmas: Floats) -> Floats:
    """Weights (N, R + 1) of the middle and of each distance from it, none beyond three sigmas of a line."""
    sigmas = np.maximum(sigmas, 1e-3)
    own_radius = np.ceil(3 * sigmas)
    distances = np.arange(int(own_radius.max()) + 1)
    weights = np.exp(-0.5 * (distances / sigmas[:, None]) ** 2) * (distances <= own_radius[:, None])
    # Added one after the other, zeros last: the sum does not depend on the widest of the batch.
    total = np.cumsum(weights * np.where(distances, 2, 1), axis=1)[:, -1:]
    return np.asarray(weights / total)


class Spot(NamedTuple):
    """A rectangle of an image of the batch, in pixels, and the ink (0..1) it is covered with."""

    image: int
    left: int
    right: int
    top: int
    bottom: int
    ink: float


def erase(images: torch.Tensor, spots: Iterable[Spot]) -> torch.Tensor:
    """Cover spots with paper or grey (random erasing: Zhong et al. 2020), in place."""
    for spot in spots:
        images[spot.image, :, spot.top : spot.bottom, spot.left : spot.right] = spot.ink
    return images


def draw_spots(draws: Draws, widths: Widths, height: int, size: float) -> list[Spot]:
    """One to four spots for each line (N,), at most ``size`` of its height wide and 1.5 times as high."""
    most = 4
    u = draws.uniforms("spots", most * 6, 0, 1).reshape(len(widths), most, 6)
    wide = np.rint((0.2 + 0.8 * u[:, :, 0]) * size * height).astype(np.int64)
    high = np.rint((0.3 + 0.7 * u[:, :, 1]) * 1.5 * size * height).astype(np.int64)
    left = (u[:, :, 2] * widths[:, None]).astype(np.int64)
    right = np.minimum(left + wide, widths[:, None])
    top = (u[:, :, 3] * np.maximum(height - high, 1)).astype(np.int64)
    ink = np.where(u[:, :, 4] < 0.6, 0.0, 0.2 + 0.6 * (u[:, :, 5]))
    # A spot each eight heights of a line or so, and at least one.
    wanted = np.clip((draws.uniform("number of spots") * widths / (4 * height)).astype(np.int64) + 1, 1, most)
    shown = (np.arange(most) < wanted[:, None]) & (wide > 0) & (high > 0)
    return [
        Spot(
            int(line),
            int(left[line, number]),
            int(right[line, number]),
            int(top[line, number]),
            int(min(top[line, number] + high[line, number], height)),
            float(ink[line, number]),
        )
        for line, number in np.argwhere(shown)
    ]


class Tone(NamedTuple):
    """Grey values of N lines.

    ``curve`` (N,) in -1..1: how much darker (lighter where negative) middle greys become, black and white
    staying. ``paper`` and ``ink`` (N, knots): what white and black then become along the line, in 0..1;
    ``spacing`` (N,) pixels between those values.
    """

    curve: Floats
    paper: Floats
    ink: Floats
    spacing: Floats

    def select(self, chosen: npt.NDArray[np.int64]) -> Tone:
        """Those of some of the lines."""
        return Tone(*(values[chosen] for values in self))


def change_tone(images: torch.Tensor, tone: Tone) -> torch.Tensor:
    """Apply contrast, brightness, a gamma-like curve and uneven light."""
    controls, spacing, curves = sent_together(
        images, np.stack([tone.paper, tone.ink], axis=1), tone.spacing, tone.curve
    )
    shades = smooth_curves(controls, spacing, images.shape[3])
    paper, ink = shades[:, :, None, None, :].unbind(1)
    curve = curves[:, None, None, None]
    # x + c x (1 - x): a power would do as well, but has other bits in other places of a batch.
    toned = (images * -curve).add_(1 + curve).mul_(images)
    return toned.mul_(ink - paper).add_(paper)


def draw_tone(draws: Draws, widths: Widths, height: int, strength: float) -> Tone:
    """Tones for lines (N,): paper at most 0.3 and ink at least 0.45, with 0.3 or more between them."""
    spacing = draws.uniform("spacing of shades", 2, 6) * height
    count = knots(widths.astype(np.float64), spacing)
    paper_most = draws.uniform("paper", 0, min(0.15 * strength, 0.3))[:, None]
    ink_least = 1 - draws.uniform("ink", 0, min(0.35 * strength, 0.55))[:, None]
    ink_least = np.maximum(ink_least, paper_most + 0.3)
    uneven = draws.uniform("unevenness", 0, 0.6)[:, None]
    return Tone(
        curve=draws.uniform("curve", -1, 1) * min(0.5 * strength, 0.9),
        paper=paper_most * (1 - uneven * draws.uniforms("paper along the line", count)),
        ink=ink_least + (1 - ink_least) * uneven * draws.uniforms("ink along the line", count),
        spacing=spacing,
    )


def add_noise(images: torch.Tensor, draws: Draws, deviations: Floats) -> torch.Tensor:
    """Nearly normal noise of standard ``deviations`` (N,), the same in all channels, cut off at 0 and 1.

    A pixel's noise is a hash of random numbers that its row and its column have.
    """
    height, width = images.shape[2:]
    random = [draws.bits("noise of a row", height), draws.bits("noise of a column", width)]
    hashes = sent(_int32(np.concatenate(random, axis=1)), images.device)
    rows, columns = hashes[:, :height], hashes[:, height:]
    hashed = rows[:, None, :, None] + columns[:, None, None, :]
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        hashed.bitwise_xor_((hashed >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    # The sum of two uniform numbers of 16 bits, whose variance is 2**32 / 6, is near enough to a normal one.
    noise = (hashed >> 16).add_((hashed << 16) >> 16).to(images.dtype)
    (factors,) = sent_together(images, deviations * np.sqrt(6) / 2**16)
    noise.mul_(factors[:, None, None, None])
    return (images + noise).clamp_(0, 1)


def _int32(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
    return (bits >> np.uint64(32)).astype(np.uint32).view(np.int32)
