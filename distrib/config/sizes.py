"""Sizes as people write them: 256M, 20G, 1_000_000."""

from __future__ import annotations

import re

from distrib.errors import InputError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str, *, option: str) -> int:
    """A number of bytes from digits with K, M, G or T (1024 each); raises InputError naming ``option``."""
    match = _SIZE.fullmatch(text.strip().replace("_", ""))
    size = int(float(match[1]) * _FACTORS[match[2].lower()]) if match else 0
    if size < 1:
        raise InputError(f"{option} {text}: not a size; give bytes with K, M or G, such as 256M.")
    return size
