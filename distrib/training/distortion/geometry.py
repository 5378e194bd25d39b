"""Where the ink of a line goes: rotation, shear, scale, translation, perspective and elastic bending at once.

All of them together are one map from places of the distorted image to places of the original, so that an
image is sampled once. Lengths are relative to the height of the line. What a long line's ends do is limited,
not its angle; and a line that would leave the image is made smaller until it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional

from distrib.training.distortion.curves import knots, sent_together, smooth_curves
from distrib.training.distortion.draws import Draws, Floats

CUT = 0.03
"""What may be lost at each edge of the image, of its height."""

_NARROWEST = 1.15
"""Of a short line's width, how many times it may have to fit in to make room at its ends."""

_FINENESS = 64
# Places are rounded to this part of a pixel and the image is taken as if it were a power of two wide and
# high: its relative coordinates are then exact, and how far a batch is padded changes no bit.


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How N lines are bent; arrays (N,), in heights of a line but for ratios. All zero (zooms 1): not at all.

    ``zoom_x`` and ``zoom_y`` are pixels of the original to one of the result. ``slope`` is the tangent of the
    angle that lines are turned by (clockwise where positive), ``shear`` that of the slant. ``perspective``
    is by how much the zooms grow from the middle to the right end, and shrink to the left one. ``spacing``
    is that of ``bends``, displacements (N, 2, 3, knots) in x and y at the top, middle and bottom of a line.
    """

    zoom_x: Floats
    zoom_y: Floats
    shift_x: Floats
    shift_y: Floats
    slope: Floats
    shear: Floats
    perspective: Floats
    spacing: Floats
    bends: Floats

    def select(self, chosen: npt.NDArray[np.int64]) -> Geometry:
        """That of some of the lines."""
        return Geometry(**{name: values[chosen] for name, values in vars(self).items()})


def draw_geometry(
    draws: Draws, widths: npt.NDArray[np.int64], height: int, strength: float
) -> tuple[Geometry, npt.NDArray[np.bool_]]:
    """How to bend lines of these widths (N,) and this height, and which of them at all, (N,).

    Elastic bending is that of Simard et al. (2003) as Wigington et al. (2017) use it for lines: displacements
    on a coarse grid, here smooth in between and fine or coarse by chance.
    """
    none = np.zeros(len(widths))
    length = np.maximum(widths, 1) / height

    def either(what: str, probability: float, most: float) -> Floats:
        """A number from -most..most, zero where it does not happen."""
        return np.where(draws.happens(what, probability), draws.uniform(what, -most, most), none)

    steepest = np.minimum(_limited(0.035, strength, 0.1), 2 * _limited(0.08, strength, 0.1) / length)
    slope = either("rotation", 0.5, 1) * steepest
    shear = either("shear", 0.5, _limited(0.2, strength, 0.4))
    shift_x = either("translation", 0.5, _limited(0.15, strength, 0.3))
    shift_y = np.where(shift_x != 0, draws.uniform("translation up or down", -1, 1), none)
    shift_y *= _limited(0.03, strength, 0.05)
    perspective = either("perspective", 0.3, _limited(0.08, strength, 0.12))
    spacing, bends_x, bends_y, reach = _draw_bends(draws, length, strength)

    scaled = draws.happens("scale", 0.5)
    narrow = draws.uniform("scale of the width", 1 - _limited(0.07, strength, 0.15), 1)
    low = draws.uniform(
        "scale of the height", 1 - _limited(0.2, strength, 0.35), 1 + _limited(0.06, strength, 0.1)
    )
    geometry = Geometry(
        zoom_x=np.where(scaled, 1 / narrow, 1.0),
        zoom_y=np.where(scaled, 1 / low, 1.0),
        shift_x=shift_x,
        shift_y=shift_y,
        slope=slope,
        shear=shear,
        perspective=perspective,
        spacing=spacing,
        bends=np.stack([bends_x, bends_y], axis=1),
    )
    bent = (np.stack([slope, shear, shift_x, perspective, reach]) != 0).any(0)
    return _fitted(geometry, length, reach), bent | scaled


def _fitted(geometry: Geometry, length: Floats, reach: Floats) -> Geometry:
    """Lines of these lengths (N,), in heights, made so small that no edge loses more than ``CUT``.

    ``reach`` (N,) is the largest displacement that the bends can have.
    """
    lean = geometry.shear - geometry.slope
    sideways = np.abs(lean) / 2 + np.abs(geometry.shift_x) + reach
    # A short line has no room at its ends for what a long one hardly notices.
    room = (_NARROWEST - 1) * length / 2
    share = np.minimum(1.0, room / np.maximum(sideways, 1e-9))
    fit_x = 1 + 2 * (sideways * share - CUT) / length
    upwards = np.abs(geometry.slope) * length / 2 + np.abs(geometry.shift_y) + reach
    fit_y = (1 - 2 * CUT + 2 * upwards) / (1 - np.abs(geometry.perspective))
    return replace(
        geometry,
        zoom_x=np.maximum(geometry.zoom_x, fit_x),
        zoom_y=np.maximum(geometry.zoom_y, fit_y),
        shift_x=geometry.shift_x * share,
        shear=geometry.slope + lean * share,
        bends=geometry.bends * np.stack([share, np.ones_like(share)], axis=1)[:, :, None, None],
    )


def _limited(usual: float, strength: float, most: float) -> float:
    """An amplitude at this strength, which no strength makes larger than ``most``."""
    return min(usual * strength, most)


def _draw_bends(draws: Draws, length: Floats, strength: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Spacing (N,), displacements in x and in y (N, 3, knots), and the largest there can be (N,)."""
    spacing = 0.4 * 4 ** draws.uniform("spacing of bends")
    steepness = draws.uniform("steepness of bends", 0.25, 1) * _limited(0.08, strength, 0.16)
    reach = np.minimum(steepness * spacing, _limited(0.045, strength, 0.06))
    reach = np.where(draws.happens("elastic", 0.5), reach, 0.0)
    count = knots(length, spacing)
    fields = [
        np.stack([draws.uniforms(f"bends in {axis}, row {row}", count, -1, 1) for row in range(3)], axis=1)
        for axis in "xy"
    ]
    return spacing, fields[0] * reach[:, None, None], fields[1] * reach[:, None, None], reach


def warp(images: torch.Tensor, widths: npt.NDArray[np.int64], geometry: Geometry) -> torch.Tensor:
    """Bend lines (N, C, H, W) float, bilinearly.

    Where the result shows what was above or below the image its outermost rows go on, since the surroundings
    of a line may well be grey or black; left and right of it is paper (0), as in a wider batch.
    """
    height, width = images.shape[2:]
    full = (1 << (width - 1).bit_length(), 1 << (height - 1).bit_length())
    places = _places(images, widths, geometry)
    sides = np.array(full)
    scale, offset = sent_together(images, 2 / (_FINENESS * sides), 1 / sides - 1)
    places.mul_(scale).add_(offset)
    framed = functional.pad(images, (0, full[0] - width, 0, full[1] - height))
    return functional.grid_sample(framed, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def _places(images: torch.Tensor, widths: npt.NDArray[np.int64], geometry: Geometry) -> torch.Tensor:
    """For each pixel of the result the place in the original, (N, H, W, 2) as whole parts of a pixel.

    Along a column a place is a quadratic polynomial of the height in the line, whose coefficients are
    curves along the line: nothing but that polynomial is evaluated for each pixel.
    """
    height, width = images.shape[2:]
    fields = vars(geometry) | {"bends": geometry.bends * height}
    wide, *numbers = sent_together(images, widths, *fields.values())
    of_line = dict(zip(fields, numbers, strict=True))
    bends = of_line.pop("bends")
    column = {name: values[:, None] for name, values in of_line.items()}
    middle = (wide[:, None] - 1) / 2
    across = torch.arange(width, device=images.device, dtype=images.dtype) - middle
    relative = across / middle.clamp(min=0.5)
    # A line that grows smaller to one end does so in both directions; its ends stay where they are.
    crowded = column["perspective"] * middle / 2 * (relative * relative - 1)
    base_x = middle + across * column["zoom_x"] + crowded + height * column["shift_x"]
    base_y = (height - 1) / 2 + across * column["slope"] + height * column["shift_y"]
    slant_x = height * (column["shear"] - column["slope"])
    slant_y = height * (column["zoom_y"] + column["perspective"] * relative)

    curves = smooth_curves(bends.flatten(1, 2), column["spacing"][:, 0] * height, width)
    top, centre, bottom = curves.reshape(-1, 2, 3, width).permute(0, 3, 1, 2).unbind(3)
    constant = torch.stack([base_x, base_y], dim=2) + (top + bottom + 2 * centre) / 4
    linear = torch.stack([slant_x.expand_as(slant_y), slant_y], dim=2) + (bottom - top)
    square = top + bottom - 2 * centre

    upright = (torch.arange(height, device=images.device, dtype=images.dtype) - (height - 1) / 2) / height
    upright = upright[:, None, None]
    places: torch.Tensor = upright * (square * _FINENESS)[:, None]
    places.add_((linear * _FINENESS)[:, None]).mul_(upright).add_((constant * _FINENESS)[:, None])
    places[..., 1].clamp_(0, (height - 1) * _FINENESS)
    return places.round_()
