"""From line image to network input: scaled to the model's height, padded, ink high."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from distrib.ground_truth.centerline import estimate_width, normalize_centerline

_WHITE = 255
_INT32_MAX = np.iinfo(np.int32).max

Widths = npt.NDArray[np.int32]


def normalized_line(image: Image.Image, *, height: int, centerline: bool) -> Image.Image:
    """The grey line (mode ``L``, dark ink, no padding) that a network of this height sees of an image.

    It is ``height`` > 0 pixels high: straightened along its centre line, or else scaled. Given to
    ``NetworkInput`` with its height it makes the same input, bit for bit, as the image itself would, save
    where the network sees colour, or black and white of an image that is not.
    """
    if height < 1:
        raise ValueError("a line is normalised to a height of 1 pixel or more")
    grey = image if image.mode == "L" else image.convert("L")
    if centerline:
        return normalize_centerline(grey, height)
    return _resize(grey, (_in_proportion(*image.size, height), height))


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

    def __call__(
        self, image: Image.Image, *, normalized_height: int = 0, bitonal_source: bool = False
    ) -> npt.NDArray[np.uint8]:
        """The image as (C, H, W) uint8, ink high; the network's value is this over 255.

        ``normalized_height`` is that of an image which ``normalized_line`` made, 0 for one that is as cut:
        the former is not straightened again and scaled only for a network of another size.
        ``bitonal_source`` says that it was made from a black and white image, whose greys come from
        scaling alone and stay.
        """
        image = self._convert(image, bitonal=bitonal_source or image.mode == "1")
        if self.follows_centerline and not normalized_height:
            image = normalize_centerline(image, self.height)
        else:
            image = _resize(image, self._scaled_size(*image.size))
        return self._invert(np.asarray(image))

    def output_width(self, width: int, height: int, *, normalized: bool = False) -> int:
        """Columns, padding included, for an image of this size; an estimate if along the centre line.

        An image that is ``normalized`` is not straightened again, so that its width is exact.
        """
        if self.follows_centerline and not normalized:
            return estimate_width(width, height, self.height) + 2 * self.pad
        return self._scaled_size(width, height)[0] + 2 * self._padding

    def output_widths(
        self, widths: Widths, heights: Widths, *, normalized: npt.NDArray[np.bool_] | bool = False
    ) -> Widths:
        """``output_width`` of N images at once, all (N,) in pixels; 0 for an image without pixels."""
        wide, high = widths.astype(np.int64), heights.astype(np.int64)
        usable = (wide > 0) & (high > 0)
        high = np.where(usable, high, 1)
        if self.width:
            columns = np.full_like(wide, self.width)
        elif self.height:
            # Floor division is what the scalar does by cutting off a quotient: both are exact below 2**53.
            kept = np.where(normalized, 1, 2) if self.follows_centerline else 1
            columns = np.maximum(wide * self.height // (high * kept), 1)
        else:
            columns = wide
        columns = np.minimum(columns + 2 * self._padding, _INT32_MAX)
        return np.where(usable, columns, 0).astype(np.int32)

    @property
    def follows_centerline(self) -> bool:
        """Whether lines are straightened, so that their width is known for sure only afterwards."""
        return self.centerline and self.channels == 1 and self.height > 0 and self.width == 0

    @property
    def _padding(self) -> int:
        return self.pad if (self.height == 0) != (self.width == 0) else 0

    def _convert(self, image: Image.Image, *, bitonal: bool) -> Image.Image:
        if self.channels == 3:
            return image if image.mode == "RGB" else image.convert("RGB")
        if self.one_channel_mode == "1" and not bitonal:
            return _binarize(image)
        return image if image.mode == "L" else image.convert("L")

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        if self.height and self.width:
            return self.width, self.height
        if self.height:
            return _in_proportion(width, height, self.height), self.height
        if self.width:
            return self.width, _in_proportion(height, width, self.width)
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


def _in_proportion(length: int, other: int, target: int) -> int:
    """One side of an image when its ``other`` side is scaled to ``target``."""
    return max(int(length * target / other), 1)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


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
