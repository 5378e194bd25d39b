"""SLURM's short form of lists of hosts: ``n[1-3,07],gpu-a[01-02]x`` for n1 n2 n3 n07 gpu-a01x gpu-a02x."""

from __future__ import annotations

import re
from collections.abc import Iterator

from distrib.errors import InputError

_PIECE = re.compile(r"([^\[\],\s]*)(?:\[([^\[\]\s]*)\])?")
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)


def hosts(text: str) -> Iterator[str]:
    """The hosts of a list in its order, one after the other: a list of a few letters may hold millions.

    Raises InputError, when it comes to the place, where ``text`` is no such list.
    """
    for element in _elements(text):
        yield from _expanded(element, text)


def _elements(text: str) -> Iterator[str]:
    """The parts between commas that stand outside of brackets."""
    depth, begin = 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            yield text[begin:place]
            begin = place + 1
    yield text[begin:]


def _expanded(element: str, text: str) -> Iterator[str]:
    """The hosts of ``a[1-2]b[3]c``, the last brackets changing fastest."""
    if not element:
        raise _no_list(text)
    piece = _PIECE.match(element)
    if piece is None or not piece.end():
        raise _no_list(text)
    before, ranges = piece.groups()
    rest = element[piece.end() :]
    if ranges is None:
        if rest:
            raise _no_list(text)
        yield before
        return
    for number in _numbers(ranges, text):
        if not rest:
            yield before + number
            continue
        for after in _expanded(rest, text):
            yield before + number + after


def _numbers(ranges: str, text: str) -> Iterator[str]:
    for part in ranges.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise _no_list(text)
        first, last = found[1], found[2] or found[1]
        if int(last) < int(first):
            raise _no_list(text)
        # The width of the first number, zeros included, is that of all.
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}d}"


def _no_list(text: str) -> InputError:
    return InputError(f"{text!r} is no list of hosts as SLURM writes them; set MASTER_ADDR and MASTER_PORT.")
