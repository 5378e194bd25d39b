"""Display order of bidirectional text, for any string: Unicode Standard Annex 9 without isolates."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from bidi.algorithm import get_display

# The pure Python implementation on purpose: the package's compiled ``bidi.get_display`` does not
# mirror brackets and quotation marks.
from distrib.ground_truth.records import BaseDirection

UNMOVED_CLASSES = frozenset({"L", "EN", "ES", "ET", "CS", "NSM", "WS", "ON"})
# Classes the implementation fails on: isolates, which it takes for neutral until it trips over them,
# and code points that Python's Unicode tables do not know yet.
_UNSUPPORTED_CLASSES = frozenset({"LRI", "RLI", "FSI", "PDI", ""})

# Where code points not assigned yet are right-to-left (DerivedBidiClass.txt).
_RIGHT_TO_LEFT_BLOCKS = (
    range(0x0590, 0x0900),
    range(0xFB1D, 0xFE00),
    range(0xFE70, 0xFF00),
    range(0x10800, 0x11000),
    range(0x1E800, 0x1F000),
)
# Characters to compute with, by direction: drawing, private use, Old South Arabian.
_NEUTRAL = range(0x2500, 0x2600)
_LEFT_TO_RIGHT = range(0xF0000, 0xFFFFE)
_RIGHT_TO_LEFT = range(0x10A60, 0x10A7D)


def display_order(text: str, base_dir: BaseDirection | None = None) -> str:
    """Reorder logical text to left-to-right display order, brackets mirrored.

    ``base_dir`` None derives the paragraph's direction from its first strong character. Isolates
    (U+2066 to U+2069) count as neutral characters and stay in the text.
    """
    classes = {unicodedata.bidirectional(character) for character in text}
    # Text without right-to-left, Arabic-number or formatting characters stays as it is in a
    # left-to-right paragraph; knowing that is far quicker than reordering.
    if base_dir != "R" and classes <= UNMOVED_CLASSES:
        return text
    if not classes & _UNSUPPORTED_CLASSES:
        return str(get_display(text, base_dir=base_dir))
    stand_ins = _stand_ins(text)
    replaced = text.translate({ord(own): stand_in for own, stand_in in stand_ins.items()})
    reordered = str(get_display(replaced, base_dir=base_dir))
    return reordered.translate({ord(stand_in): own for own, stand_in in stand_ins.items()})


def _stand_ins(text: str) -> dict[str, str]:
    """For each unsupported character one that is supported, of its direction, and not in the text."""
    unsupported = {
        character for character in text if unicodedata.bidirectional(character) in _UNSUPPORTED_CLASSES
    }
    neutral, left_to_right, right_to_left = (
        _absent(block, text) for block in (_NEUTRAL, _LEFT_TO_RIGHT, _RIGHT_TO_LEFT)
    )
    stand_ins = {}
    for character in sorted(unsupported):
        if unicodedata.bidirectional(character):
            stand_ins[character] = next(neutral)
        elif any(ord(character) in block for block in _RIGHT_TO_LEFT_BLOCKS):
            # More such letters in one line than a script has fall back to the other direction.
            stand_ins[character] = next(right_to_left, None) or next(left_to_right)
        else:
            stand_ins[character] = next(left_to_right)
    return stand_ins


def _absent(block: range, text: str) -> Iterator[str]:
    return (character for character in map(chr, block) if character not in text)
