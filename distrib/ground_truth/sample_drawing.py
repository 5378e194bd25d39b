"""Drawing printed lines with Pillow's built-in font: letters, accents, slant, curve, paper and ink."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from distrib.errors import InputError

Pixels = npt.NDArray[np.float32]

# Drawn this much larger and scaled down: ImageDraw's own shapes have no smooth edges.
_OVERSAMPLING = 2
_ASCENT, _DESCENT = 1.1, 0.35
"""Room above and below the baseline, in font sizes; accents on capitals and cedillas fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ink:
    """A typeset line: ``coverage`` (H, W) in 0..1; ``baseline[x]`` is the baseline's row in column x."""

    coverage: Pixels
    baseline: Pixels
    ascent: float
    descent: float


class Typesetter:
    """Sets lines in Pillow's built-in scalable font, which has the letters of ASCII but no accented ones.

    Letters are placed one by one by their own widths, so the picture does not depend on which layout
    engine Pillow was built with; diacritics are drawn over their base letters.
    """

    def __init__(self, size: float) -> None:
        font = ImageFont.load_default(size * _OVERSAMPLING)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise InputError("The sample needs a Pillow built with FreeType; install Pillow from PyPI.")
        self.size = size
        self._font = font

    def set(self, text: str, *, slant: float = 0.0, slope: float = 0.0, sag: float = 0.0) -> Ink:
        """Typeset ``text``.

        Args:
            slant: pixels to the right per pixel above the baseline.
            slope: pixels down per pixel to the right.
            sag: pixels by which the middle of the line hangs below its ends (negative: arches).
        """
        flat = self._flat(text, slant)
        width = flat.shape[1]
        along = np.linspace(-1.0, 1.0, width, dtype=np.float32)
        offset = slope * (along + 1) * width / 2 + sag * (1 - along**2)
        offset -= offset.min()
        return Ink(
            coverage=_shift_columns(flat, offset),
            baseline=(offset + _ASCENT * self.size).astype(np.float32),
            ascent=_ASCENT * self.size,
            descent=_DESCENT * self.size,
        )

    def _flat(self, text: str, slant: float) -> Pixels:
        big = self.size * _OVERSAMPLING
        margin = abs(slant) * (_ASCENT + _DESCENT) * big + 0.15 * big
        letters = [(c[0], c[1:]) for c in (unicodedata.normalize("NFD", letter) for letter in text)]
        widths = [self._font.getlength(base) for base, _ in letters]
        height = round((_ASCENT + _DESCENT) * self.size) * _OVERSAMPLING
        width = round((sum(widths) + 2 * margin) / _OVERSAMPLING) * _OVERSAMPLING
        canvas = Image.new("L", (width, height))
        draw = ImageDraw.Draw(canvas)
        x, y = margin, _ASCENT * big
        for (base, marks), advance in zip(letters, widths, strict=True):
            draw.text((x, y), base, fill=255, font=self._font, anchor="ls")
            for mark in marks:
                self._draw_mark(draw, mark, draw.textbbox((x, y), base, font=self._font, anchor="ls"))
            x += advance
        if slant:
            canvas = canvas.transform(
                canvas.size,
                Image.Transform.AFFINE,
                (1, slant, -slant * y, 0, 1, 0),
                Image.Resampling.BILINEAR,
            )
        small = canvas.reduce(_OVERSAMPLING)
        return np.asarray(small, dtype=np.float32) / np.float32(255)

    def _draw_mark(
        self, draw: ImageDraw.ImageDraw, mark: str, box: tuple[float, float, float, float]
    ) -> None:
        unit = self.size * _OVERSAMPLING / 100
        stroke = round(7 * unit)
        middle, top = (box[0] + box[2]) / 2, box[1] - 7 * unit
        if mark == "\u0308":  # diaeresis
            for dot in (middle - 12 * unit, middle + 12 * unit):
                draw.ellipse((dot - 5 * unit, top - 11 * unit, dot + 5 * unit, top - unit), fill=255)
        elif mark == "\u0301":  # acute
            draw.line((middle - 6 * unit, top, middle + 9 * unit, top - 15 * unit), fill=255, width=stroke)
        elif mark == "\u0300":  # grave
            draw.line((middle + 6 * unit, top, middle - 9 * unit, top - 15 * unit), fill=255, width=stroke)
        elif mark == "\u0302":  # circumflex
            corners = ((middle - 13 * unit, top), (middle, top - 13 * unit), (middle + 13 * unit, top))
            draw.line(corners, fill=255, width=stroke, joint="curve")
        elif mark == "\u0327":  # cedilla
            low = box[3] - unit
            hook = ((middle, low), (middle + 5 * unit, low + 9 * unit), (middle - 7 * unit, low + 17 * unit))
            draw.line(hook, fill=255, width=round(6 * unit), joint="curve")
        else:
            raise ValueError(f"no drawing for U+{ord(mark):04X}")


def _shift_columns(flat: Pixels, offset: npt.NDArray[np.float32]) -> Pixels:
    """Each column moved down by its offset (pixels, >= 0), between rows by linear interpolation."""
    height = flat.shape[0]
    taller = height + int(np.ceil(offset.max())) + 1
    padded = np.pad(flat, ((taller - height + 1, taller - height + 1), (0, 0)))
    whole = np.floor(offset).astype(np.intp)
    part = (offset - whole).astype(np.float32)
    rows = np.arange(taller)[:, None] - whole[None, :] + taller - height + 1
    here = np.take_along_axis(padded, rows, axis=0)
    above = np.take_along_axis(padded, rows - 1, axis=0)
    return here * (1 - part) + above * part


def print_ink(coverage: Pixels, rng: np.random.Generator) -> Image.Image:
    """Ink on paper, mode L: a tint that drifts over the sheet, soft edges, uneven ink and a little grain."""
    height, width = coverage.shape
    softness = rng.uniform(0.3, 0.7)
    paper, ink = rng.uniform(224, 246), rng.uniform(25, 70)
    tint = paper + _drift(rng, width, height, 6.0)
    covered = coverage * (1 + _drift(rng, width, height, 0.12))
    sheet = tint - np.clip(covered, 0, 1) * (tint - ink)
    # Four grey levels of grain look like noise and still compress.
    sheet += 2.0 * rng.integers(-2, 2, size=sheet.shape, dtype=np.int8)
    image = Image.fromarray(np.clip(np.rint(sheet), 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(softness))


def _drift(rng: np.random.Generator, width: int, height: int, strength: float) -> Pixels:
    coarse = rng.uniform(-strength, strength, size=(max(height // 60, 2), max(width // 60, 2)))
    smooth = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32)
