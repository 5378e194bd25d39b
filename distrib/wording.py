"""Quantities as messages show them."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes as B, KB, MB or GB, by thousands."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def plural(count: int, noun: str, several: str | None = None) -> str:
    """``1 line``, ``2,000 lines``; ``several`` is a plural that is not made with an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {several or noun + 's'}"
