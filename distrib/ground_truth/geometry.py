"""Coordinates as ALTO and PAGE write them: parsed to points, bounded by boxes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from distrib.ground_truth.records import Point

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; right and bottom lie just outside the box."""

_SEPARATORS = re.compile(r"[\s,;]+")
# Beyond what any image format can address; keeps hostile numbers out of integer arithmetic.
_LARGEST_COORDINATE = 2**31


def parse_number(value: str | None) -> float | None:
    """A coordinate; None where there is none or it is not a finite number of sensible size."""
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < _LARGEST_COORDINATE else None


def parse_numbers(value: str | None) -> list[float]:
    """All numbers of a coordinate attribute, separated by spaces, commas or semicolons.

    Raises:
        ValueError: something else stands among them; the message quotes it.
    """
    numbers = []
    for token in _SEPARATORS.split(value or ""):
        if not token:
            continue
        number = parse_number(token)
        if number is None:
            raise ValueError(f"{token[:40]!r} is not a coordinate")
        numbers.append(number)
    return numbers


def parse_points(value: str | None) -> tuple[Point, ...]:
    """Points from ``x1,y1 x2,y2`` or ``x1 y1 x2 y2``; none from an empty or missing attribute.

    Raises:
        ValueError: not numbers, or an odd count of them.
    """
    return pair_up(parse_numbers(value))


def pair_up(numbers: Sequence[float]) -> tuple[Point, ...]:
    """Points from a flat list x1, y1, x2, y2.

    Raises:
        ValueError: an odd count of numbers.
    """
    if len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers do not pair up to points")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def on_pixels(points: Iterable[Point]) -> tuple[Point, ...]:
    """Points on whole pixels, fractions cut off and immediate repetitions dropped, as kraken has them.

    A repeated point would be a piece of baseline without length.
    """
    return tuple(point for point, _ in groupby((int(x), int(y)) for x, y in points))


def bounding_box(points: Sequence[Point]) -> Box | None:
    """The smallest box around points, None around none."""
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def box_corners(box: Box) -> tuple[Point, ...]:
    """The four corners of a box, clockwise from the top left."""
    left, top, right, bottom = box
    return (left, top), (right, top), (right, bottom), (left, bottom)
