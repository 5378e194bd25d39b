"""A small set of ground truth drawn on the spot, for demonstrations, tests and benchmarks.

    sample/
      README.md
      lines/0001.png  lines/0001.gt.txt  …     line pairs
      alto/0001.xml   alto/0001.png      …     pages with baselines and polygons, ALTO 4
      page/0001.xml   page/0001.png      …     the same as PAGE 2019

Everything follows from the seed: texts are the same everywhere, pictures to the byte with the same
Pillow and numpy. Texts are excerpts of works in the public domain; the pictures are given away under
CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distrib.errors import InputError
from distrib.ground_truth.sample_drawing import Typesetter, print_ink
from distrib.ground_truth.sample_pages import LAYOUTS, alto, draw_page, page_xml
from distrib.ground_truth.sample_text import LANGUAGES, excerpt

_README = """\
# Sample ground truth

Drawn by `ketos sample` (seed {seed}): {pairs} line pairs in `lines/`, {pages} pages in `alto/` and `page/`.
Texts are excerpts of works in the public domain. The pictures and descriptions are dedicated to the
public domain under CC0 1.0: https://creativecommons.org/publicdomain/zero/1.0/
"""
_PAIR_STREAM, _PAGE_STREAM = 1 << 32, 2 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """What was written: line pairs, pages and the lines on them, and the characters of all texts, sorted."""

    directory: Path
    pairs: int
    pages: int
    page_lines: int
    alphabet: str


def write_sample(directory: Path, *, pairs: int = 240, pages: int = 6, seed: int = 42) -> SampleSummary:
    """Write the sample into ``directory``, which must be empty or not exist.

    Of the pages the first half (rounded up) is ALTO and the rest PAGE; each half goes through straight
    lines, curved lines and two columns. The n-th line or page is the same whatever the numbers asked for.

    Raises:
        InputError: the directory holds something, cannot be written, or an argument is negative.
    """
    if min(pairs, pages, seed) < 0:
        raise InputError(
            f"pairs ({pairs}), pages ({pages}) and seed ({seed}) of a sample cannot be negative."
        )
    _make_empty(directory)
    alphabet: set[str] = set()
    page_lines = 0
    try:
        for number in range(1, pairs + 1):
            alphabet |= set(_write_pair(directory / "lines", number, seed))
        alto_pages = (pages + 1) // 2
        for number in range(1, pages + 1):
            is_alto = number <= alto_pages
            within = number if is_alto else number - alto_pages
            texts = _write_page(directory, within, seed, is_alto=is_alto)
            alphabet |= set("".join(texts))
            page_lines += len(texts)
        readme = _README.format(seed=seed, pairs=pairs, pages=pages)
        (directory / "README.md").write_text(readme, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(
            f"{directory}: the sample cannot be written ({error.strerror or error}); name another directory."
        ) from error
    return SampleSummary(
        directory=directory,
        pairs=pairs,
        pages=pages,
        page_lines=page_lines,
        alphabet="".join(sorted(alphabet)),
    )


def _make_empty(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        occupied = any(directory.iterdir())
    except OSError as error:
        raise InputError(
            f"{directory} cannot be made ({error.strerror or error}); name another directory."
        ) from error
    if occupied:
        raise InputError(f"{directory} is not empty; name a new or empty directory for the sample.")


def _stream(seed: int, number: int) -> np.random.Philox:
    # Texts are drawn from it directly; looks from a jumped copy, whose use numpy may change.
    return np.random.Philox(key=np.array([seed, number], dtype=np.uint64))


def _write_pair(folder: Path, number: int, seed: int) -> str:
    folder.mkdir(exist_ok=True)
    bits = _stream(seed, _PAIR_STREAM + number)
    text = excerpt(bits, LANGUAGES[int(bits.random_raw()) % len(LANGUAGES)], 12, 36)
    rng = np.random.Generator(bits.jumped())
    size = rng.uniform(24, 38)
    ink = Typesetter(size).set(
        text, slant=rng.uniform(-0.05, 0.12), slope=rng.uniform(-0.004, 0.004), sag=rng.uniform(-2, 2)
    )
    print_ink(ink.coverage, rng).save(folder / f"{number:04}.png")
    (folder / f"{number:04}.gt.txt").write_text(text + "\n", encoding="utf-8", newline="\n")
    return text


def _write_page(directory: Path, number: int, seed: int, *, is_alto: bool) -> list[str]:
    folder = directory / ("alto" if is_alto else "page")
    folder.mkdir(exist_ok=True)
    stream = _PAGE_STREAM + 2 * number + (0 if is_alto else 1)
    page = draw_page(_stream(seed, stream), LAYOUTS[(number - 1) % len(LAYOUTS)])
    image_name = f"{number:04}.png"
    page.image.save(folder / image_name)
    description = alto(page, image_name) if is_alto else page_xml(page, image_name)
    (folder / f"{number:04}.xml").write_text(description, encoding="utf-8", newline="\n")
    return [line.text for lines in page.columns for line in lines]
