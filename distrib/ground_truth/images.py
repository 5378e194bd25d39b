"""Page and line images from files: size checked before decoding, upright, in mode 1, L or RGB."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from distrib.ground_truth.problems import ImageProblem
from distrib.ground_truth.records import SkipReason

__all__ = ["MAX_PIXELS", "ImageHeader", "ImageProblem", "open_image", "read_image_header"]

MAX_PIXELS = 300_000_000
"""Default limit of width times height; decoded as RGB such a page takes 0.9 GB."""

# Raster formats that scans come in. What is left out runs other programs (EPS calls Ghostscript) or is
# decoded by code that hardly anybody tests.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "JPEG2000", "BMP", "GIF", "PPM", "AVIF", "MPO")
_SIDEWAYS = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What an image file says before it is decoded: upright size in pixels, dots per inch if stated."""

    width: int
    height: int
    dpi: tuple[float, float] | None


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file to mode ``1``, ``L`` or ``RGB``, turned upright as its EXIF data asks.

    Transparent parts show white paper, 16-bit samples are reduced to their upper eight bits.

    Raises:
        ImageProblem: the file is missing, larger than ``max_pixels``, damaged or no known image.
    """
    return decode_image(_read_bytes(path), name=str(path), max_pixels=max_pixels)


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Like open_image, for an encoded image in memory; ``name`` stands for it in messages.

    Raises:
        ImageProblem: as open_image.
    """
    image = _open_header(io.BytesIO(data), name)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageProblem(
            SkipReason.IMAGE_TOO_LARGE,
            f"{name} is {width} × {height} pixels, more than the limit of {max_pixels} pixels; scale it down",
        )
    try:
        image.load()
        return _simple_mode(ImageOps.exif_transpose(image))
    # Decoders raise whatever their parsing of damaged data runs into, from OSError to KeyError; all of
    # it means that this file cannot be read.
    except Exception as error:
        raise _unreadable(name, error) from error


def read_image_header(path: Path) -> ImageHeader:
    """Size and resolution of an image file without decoding it.

    Raises:
        ImageProblem: the file is missing or no known image.
    """
    try:
        with path.open("rb") as file:
            image = _open_header(file, str(path))
            width, height = image.size
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            if orientation in _SIDEWAYS:
                width, height = height, width
            return ImageHeader(width=width, height=height, dpi=_resolution(image))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(str(path), error) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _open_header(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    """The image with its header parsed, by the plugins' own openers.

    ``Image.open`` would apply Pillow's process-wide pixel limit, which is lower than ours and refuses
    or warns on scans that people train on; changing that global is not ours to do.
    """
    Image.init()
    prefix = file.read(16)
    for format_name in _FORMATS:
        factory, accept = Image.OPEN.get(format_name, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        file.seek(0)
        try:
            return factory(file, name)
        # As in decode_image: a plugin may raise anything on a damaged header, and the next may accept it.
        except Exception:  # noqa: S112
            continue
    raise ImageProblem(
        SkipReason.UNREADABLE_IMAGE,
        f"{name} is {_guess(prefix)}; supported are PNG, JPEG, TIFF, WebP, JPEG 2000, BMP, GIF and PNM",
    )


def _guess(prefix: bytes) -> str:
    if not prefix:
        return "an empty file, not an image"
    if prefix.lstrip().startswith(b"<"):
        return "an XML file, not an image (use -f xml)"
    return "no image of a known format or has a damaged header"


def _resolution(image: Image.Image) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    # 72 and below are what programs write when they do not know.
    return (horizontal, vertical) if min(horizontal, vertical) > 72 else None


def _simple_mode(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in ("1", "L", "RGB"):
        return image
    if mode.startswith(("I", "F")):
        return _eight_bit(image)
    if mode == "P":
        return _from_palette(image)
    if mode in ("LA", "La"):
        return _over_white(image.convert("LA"), "L")
    if mode in ("RGBA", "RGBa", "PA"):
        return _over_white(image.convert("RGBA"), "RGB")
    return image.convert("RGB")


def _from_palette(image: Image.Image) -> Image.Image:
    if "transparency" in image.info:
        image = _over_white(image.convert("RGBA"), "RGB")
    else:
        image = image.convert("RGB")
    return image.convert("L") if _is_gray(image) else image


def _is_gray(image: Image.Image) -> bool:
    colours = image.getcolors(maxcolors=1 << 16) or []
    return bool(colours) and all(
        red == green == blue
        for _, (red, green, blue) in cast("list[tuple[int, tuple[int, int, int]]]", colours)
    )


def _over_white(image: Image.Image, mode: str) -> Image.Image:
    """Lay an image with an alpha channel on white paper."""
    alpha = image.getchannel("A")
    opaque = image.convert(mode)
    if alpha.getextrema() == (255, 255):
        return opaque
    paper = Image.new(mode, image.size, "white")
    paper.paste(opaque, mask=alpha)
    return paper


def _eight_bit(image: Image.Image) -> Image.Image:
    """Reduce 16-bit, 32-bit and float samples to mode L.

    Integers above 255 are taken for 16-bit samples, floats up to 1 for fractions of white: the file
    formats do not say.
    """
    samples = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    brightest = float(samples.max(initial=0.0))
    if image.mode.startswith("I;16") or (image.mode == "I" and brightest > 255) or brightest > 255:
        samples = np.floor(samples / 256.0)
    elif image.mode == "F" and brightest <= 1.0:
        samples = samples * 255.0
    return Image.fromarray(np.clip(samples, 0, 255).astype(np.uint8))


def _missing(path: Path) -> ImageProblem:
    return ImageProblem(
        SkipReason.MISSING_IMAGE, f"image {path} does not exist; put it there or correct its name"
    )


def _unreadable(name: str, error: Exception) -> ImageProblem:
    return ImageProblem(
        SkipReason.UNREADABLE_IMAGE,
        f"image {name} cannot be read ({error or type(error).__name__}); replace it",
    )
