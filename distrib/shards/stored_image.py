"""Decoding the image of a line as a data set stores it: a PNG, or in tars of others another format."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image

from distrib.shards.arrow_schema import IMAGE_MODES
from distrib.shards.png import decode_png
from distrib.shards.tar_index import IMAGE_FORMATS

_PNG: Final = b"\x89PNG"
_FORMATS: Final = tuple(sorted(set(IMAGE_FORMATS.values())))


def decode_stored(content: bytes) -> Image.Image:
    """The decoded image, mode ``1``, ``L`` or ``RGB``. Raises one of ``png.UNREADABLE_IMAGE``."""
    if content.startswith(_PNG):
        return decode_png(content)
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        image.load()
        return image if image.mode in IMAGE_MODES else image.convert("RGB")
