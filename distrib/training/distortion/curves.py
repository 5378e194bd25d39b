"""What the distortions share: numbers of lines on their way to the device, and smooth curves along a line."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from distrib.training.distortion.draws import Floats


def sent(values: npt.NDArray[np.integer], device: torch.device) -> torch.Tensor:
    """Integers on a device, which is not waited for."""
    return _sent(torch.from_numpy(np.ascontiguousarray(values)), device)


def sent_together(like: torch.Tensor, *values: npt.NDArray[np.number]) -> list[torch.Tensor]:
    """Arrays of numbers on the device of ``like`` and in its type, of floats; they go there as one."""
    flat = np.concatenate([each.ravel() for each in values], dtype=np.float64)
    together = _sent(torch.from_numpy(flat).to(like.dtype), like.device)
    parts = torch.split(together, [each.size for each in values])
    return [part.view(each.shape) for part, each in zip(parts, values, strict=True)]


def _sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    # From memory that may be moved a copy would wait for all that the GPU still has to do.
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


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
