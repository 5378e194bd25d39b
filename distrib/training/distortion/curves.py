"""What the distortions share: smooth curves along a line, and the padding to the right of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from distrib.training.distortion.draws import Floats


def tensor(values: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    """Values on the device of ``like``; those that are floats, in its type."""
    result = torch.from_numpy(np.ascontiguousarray(values))
    return result.to(like.device, like.dtype if result.is_floating_point() else result.dtype)


def clear_padding(images: torch.Tensor, widths: npt.NDArray[np.int64]) -> torch.Tensor:
    """Set the columns from a line's width on to zero, in place; images (N, C, H, W), widths (N,)."""
    if widths.size and int(widths.min()) < images.shape[3]:
        columns = torch.arange(images.shape[3], device=images.device)
        inside = columns < tensor(widths, images)[:, None]
        images.mul_(inside[:, None, None, :])
    return images


def knots(lengths: Floats, spacing: Floats) -> int:
    """Control values that each of N curves of these lengths (N,), at this spacing (N,), has enough of."""
    return int((lengths / spacing).max(initial=0)) + 5


def smooth_curves(controls: torch.Tensor, spacing: torch.Tensor, width: int) -> torch.Tensor:
    """Uniform cubic B-splines (N, K, width) of control values (N, K, knots) that are ``spacing`` (N,) apart.

    A curve never leaves the range of its control values. Only products and sums make it: a column has the
    same bits whatever the width.
    """
    places = torch.arange(width, device=controls.device, dtype=controls.dtype) / spacing[:, None]
    cells = places.floor()
    t = places - cells
    first = cells.long().clamp_(max=controls.shape[2] - 4)[:, None].expand(-1, controls.shape[1], -1)
    s = 1 - t
    middle = t * t * (t - 2) * 0.5 + 2 / 3
    other = s * s * (s - 2) * 0.5 + 2 / 3
    result = controls.gather(2, first) * (s * s * s / 6)[:, None]
    for step, weight in enumerate((middle, other, t * t * t / 6), start=1):
        result += controls.gather(2, first + step) * weight[:, None]
    return result
