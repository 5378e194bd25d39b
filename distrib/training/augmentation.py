"""Lines made to look different in every epoch, as other scans, prints and hands of the same text would."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from distrib.training.distortion.curves import sent
from distrib.training.distortion.draws import Draws
from distrib.training.distortion.geometry import draw_geometry, warp
from distrib.training.distortion.photometry import (
    add_noise,
    blur,
    change_strokes,
    change_tone,
    draw_spots,
    draw_tone,
    erase,
)

_CLEAN = 0.25
# The share of lines left alone: what is recognised later is clean for the most part.

_Widths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Augmentation:
    """Distorts line images at random: a quarter of them not at all, the others in a few ways each.

    Geometry (rotation, shear, scale, translation, perspective, elastic bending after Simard et al. 2003 and
    Wigington et al. 2017) is one sampling of the image; then come stroke weight, blur, random erasing (Zhong
    et al. 2020), contrast and shading, and noise. ``strength`` scales the amplitude of all: 0 changes
    nothing, 1 is as is usual, and what no reader could read is out of reach for any.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise ValueError(f"the strength of augmentation is 0 or more, not {self.strength}")

    def __call__(
        self, images: torch.Tensor, widths: torch.Tensor, lines: torch.Tensor, *, seed: int, epoch: int
    ) -> torch.Tensor:
        """The images (N, C, H, W) distorted: floats in 0..1, ink high, zero to the right of a line's width.

        ``widths`` int64 (N,) in pixels and ``lines`` int64 (N,), the line numbers, are on the CPU; the result
        has the shape, type and device of ``images``, which stay as they are. What becomes of a line follows
        from (seed, epoch, line number) alone, not from the batch it is in nor how far that is padded; only
        the height is taken to be the same, as a network of fixed height makes it.
        """
        if not images.is_floating_point():
            raise ValueError(f"images to augment are floats in 0..1, not {images.dtype}")
        if self.strength == 0 or not images.numel():
            return images
        draws = Draws(seed, epoch, lines.numpy())
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            # Half precision cannot name a pixel of a long line.
            work = images.to(torch.promote_types(images.dtype, torch.float32), copy=True)
            self._distort(_Lines(work, widths.numpy()), draws)
            return work.clamp_(0, 1).to(images.dtype)

    def _distort(self, lines: _Lines, draws: Draws) -> None:
        """Distort in place. What comes later can build on what comes earlier, as ink comes before light."""
        images, widths, height = lines.images, lines.widths, lines.images.shape[2]
        strength, touched = self.strength, ~draws.happens("clean", _CLEAN)

        geometry, bent = draw_geometry(draws, widths, height, strength)
        lines.change(touched & bent, lambda part, at: warp(part, widths[at], geometry.select(at)))

        # A pixel more is much for the thin strokes of a low line.
        weight = min(0.8 * strength, 1.0) * min(height / 120, 1.0)
        weights = draws.uniform("strokes", -weight, weight)
        chosen = touched & draws.happens("strokes", 0.3)
        lines.change(chosen, lambda part, at: change_strokes(part, weights[at]))

        sigmas = draws.uniforms("blur", 2, 0.25, 1) * min(0.012 * strength, 0.025) * height
        chosen = touched & draws.happens("blur", 0.3)
        lines.change(chosen, lambda part, at: blur(part, sigmas[at]))

        erased = touched & draws.happens("erasing", 0.25)
        spots = draw_spots(draws, widths, height, min(0.3 * strength, 0.5))
        erase(images, [spot for spot in spots if erased[spot.image]])

        tone = draw_tone(draws, widths, height, strength)
        chosen = touched & draws.happens("tone", 0.5)
        lines.change(chosen, lambda part, at: change_tone(part, tone.select(at)))

        noise = draws.uniform("noise", 0.1, 1) * min(0.06 * strength, 0.15)
        chosen = touched & draws.happens("noise", 0.3)
        lines.change(chosen, lambda part, at: add_noise(part, draws.select(at), noise[at]))


class _Lines:
    """Images (N, C, H, W) to be changed in place, zero to the right of their widths (N,)."""

    def __init__(self, images: torch.Tensor, widths: _Widths) -> None:
        self.images = images
        self.widths = widths
        self._inside: torch.Tensor | None = None
        if int(widths.min()) < images.shape[3]:
            columns = torch.arange(images.shape[3], device=images.device)
            self._inside = (columns < sent(widths, images.device)[:, None])[:, None, None, :]

    def change(
        self,
        chosen: npt.NDArray[np.bool_],
        change: Callable[[torch.Tensor, npt.NDArray[np.int64]], torch.Tensor],
    ) -> None:
        """Change the chosen lines (N,); ``change`` gets their images and their positions."""
        at = np.flatnonzero(chosen)
        if at.size == len(self.images):
            changed = change(self.images, at)
            self.images.copy_(changed if self._inside is None else changed.mul_(self._inside))
        elif at.size:
            places = sent(at, self.images.device)
            changed = change(self.images.index_select(0, places), at)
            if self._inside is not None:
                changed.mul_(self._inside.index_select(0, places))
            self.images.index_copy_(0, places, changed)
