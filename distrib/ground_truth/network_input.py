"""From line image to network input: scaled to the model's height, padded, ink high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from distrib.ground_truth.centerline import estimate_width, normalize_centerline

_WHITE = 255


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """How line images become the input of a network, from the input block of its VGSL spec.

    ``height`` or ``width`` 0 is variable: kept in proportion to the other, or as it is where both are.
    ``channels`` is 1 or 3; ``one_channel_mode`` ``"1"`` binarises, None and ``"L"`` keep grey levels.
    ``pad`` white columns go left and right where one side is in proportion to the other: an image whose
    width is fixed or left alone is not padded. ``centerline`` straightens the line along its centre
    instead of merely scaling it and is meant for one channel and a fixed height.
    """

    height: int
    width: int = 0
    channels: int = 1
    one_channel_mode: Literal["1", "L"] | None = None
    pad: int = 16
    centerline: bool = False

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"a line image has 1 or 3 channels, not {self.channels}")
        if min(self.height, self.width, self.pad) < 0:
            raise ValueError("height, width and padding of a network input cannot be negative")

    def __call__(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The image as (C, H, W) uint8, ink high; the network's value is this over 255."""
        image = self._convert(image)
        if self.follows_centerline:
            image = normalize_centerline(image, self.height)
        else:
            size = self._scaled_size(*image.size)
            if size != image.size:
                image = image.resize(size, Image.Resampling.LANCZOS)
        return self._invert(np.asarray(image))

    def output_width(self, width: int, height: int) -> int:
        """Columns, padding included, for an image of this size; an estimate if along the centre line."""
        if self.follows_centerline:
            return estimate_width(width, height, self.height) + 2 * self.pad
        return self._scaled_size(width, height)[0] + 2 * self._padding

    @property
    def follows_centerline(self) -> bool:
        """Whether lines are straightened, so that their width is known for sure only afterwards."""
        return self.centerline and self.channels == 1 and self.height > 0 and self.width == 0

    @property
    def _padding(self) -> int:
        return self.pad if (self.height == 0) != (self.width == 0) else 0

    def _convert(self, image: Image.Image) -> Image.Image:
        if self.channels == 3:
            return image if image.mode == "RGB" else image.convert("RGB")
        if self.one_channel_mode == "1" and image.mode != "1":
            return _binarize(image)
        return image if image.mode == "L" else image.convert("L")

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        if self.height and self.width:
            return self.width, self.height
        if self.height:
            return max(int(width * self.height / height), 1), self.height
        if self.width:
            return self.width, max(int(height * self.width / width), 1)
        return width, height

    def _invert(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        height, width, channels = pixels.shape
        padding = self._padding
        brightest = _WHITE if padding else int(pixels.max())
        out = np.zeros((channels, height, width + 2 * padding), dtype=np.uint8)
        inside = out[:, :, padding : padding + width]
        np.subtract(np.uint8(brightest), pixels.transpose(2, 0, 1), out=inside)
        return out


def _binarize(image: Image.Image) -> Image.Image:
    """A black and white image (mode ``L``), cut where the two classes of grey are furthest apart (Otsu)."""
    grey = image.convert("L")
    counts = np.asarray(grey.histogram(), dtype=np.float64)
    below = counts.cumsum()
    mass = (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    threshold = int(np.nan_to_num(between).argmax())
    return grey.point([0] * (threshold + 1) + [_WHITE] * (255 - threshold))
