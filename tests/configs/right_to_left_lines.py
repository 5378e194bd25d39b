"""Lines of Hebrew to learn, drawn without a Hebrew font: each letter has the shape of a Latin one of its own.

What matters is kept: texts are in reading order, the shapes stand from right to left, and words in Latin
letters and numbers among them from left to right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distrib.ground_truth.display_order import display_order
from distrib.ground_truth.sample_drawing import Typesetter, print_ink

# Genesis 1, with what a printed page adds: numbers, brackets, a Latin word at the beginning of a line.
TEXTS = (
    "בראשית ברא אלהים את השמים ואת הארץ",
    "והארץ היתה תהו ובהו (וחשך) על פני תהום",
    "ורוח אלהים מרחפת על פני המים",
    "ויאמר אלהים יהי אור ויהי אור 3",
    "Genesis וירא אלהים את האור כי טוב",
    "ויבדל אלהים בין האור ובין החשך 14",
    "ויקרא אלהים לאור יום ולחשך קרא לילה",
    "ויהי ערב ויהי בקר יום אחד",
)
_LETTERS = "אבגדהוזחטיךכלםמןנסעףפץצקרשת"
_SHAPES = str.maketrans(_LETTERS, "abcdefghijklmnopqrstuvwxyzA")


def write_lines(folder: Path, repeats: int) -> list[Path]:
    """Write each text ``repeats`` times, a little different each time, as line pairs; the images' paths."""
    folder.mkdir(parents=True)
    images = []
    for number, text in enumerate(TEXTS * repeats, start=1):
        shapes = display_order(text, "R").translate(_SHAPES)
        rng = np.random.Generator(np.random.Philox(number))
        ink = Typesetter(rng.uniform(24, 30)).set(shapes, slant=rng.uniform(0, 0.1))
        image = folder / f"{number:03}.png"
        print_ink(ink.coverage, rng).save(image)
        image.with_suffix(".gt.txt").write_text(text + "\n", encoding="utf-8")
        images.append(image)
    return images
