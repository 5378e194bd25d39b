"""Line pairs: the image of one line and its text in a ``.gt.txt`` file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.records import Line, Page, SkipReason
from distrib.ground_truth.text import single_line

TEXT_SUFFIX = ".gt.txt"
_NOT_IMAGES = frozenset({".txt", ".xml", ".json", ".tsv", ".csv", ".arrow", ".tar"})


def read_pair(image: Path, *, textless: bool = False) -> Page:
    """A page of one line, without boundary: the line is the whole image, which is not opened.

    The line's id is the image's file name. ``textless`` images need no text file, and have an empty text.

    Raises:
        SourceProblem: the source is no image, or its text file is missing or not UTF-8.
    """
    if image.suffix.lower() in _NOT_IMAGES:
        raise SourceProblem(
            SkipReason.NOT_GROUND_TRUTH,
            f"{image} is not a line image: with -f path name the images, for XML files use -f xml, "
            "for compiled data sets -f binary",
        )
    text = _text(image, textless=textless)
    line = Line(id=image.name, text=text, baseline=None, boundary=None)
    return Page(source=image, image=image, line_type="bbox", lines=(line,))


def _text(image: Path, *, textless: bool) -> str:
    try:
        return read_text(find_text_file(image))
    except SourceProblem as problem:
        if textless and problem.reason is SkipReason.MISSING_TEXT_FILE:
            return ""
        raise


def find_text_file(image: Path) -> Path:
    """The text file of a line image: its name with ``.gt.txt`` for one or more of its extensions.

    ``line.bin.png`` goes with ``line.bin.gt.txt``, or failing that with ``line.gt.txt``.

    Raises:
        SourceProblem: there is none; the sentence says so if a ``.txt`` is there instead.
    """
    prefixes = list(_prefixes(image.name))
    for prefix in prefixes:
        candidate = image.with_name(prefix + TEXT_SUFFIX)
        if candidate.is_file():
            return candidate
    expected = image.with_name(prefixes[0] + TEXT_SUFFIX)
    detail = f"{image} has no text file {expected.name} beside it"
    for prefix in prefixes:
        plain = image.with_name(prefix + ".txt")
        if plain.is_file():
            detail += f"; there is {plain.name}: rename it to {prefix}{TEXT_SUFFIX}"
            break
    else:
        detail += "; write one"
    if not image.exists():
        raise SourceProblem(SkipReason.MISSING_IMAGE, f"image {image} does not exist; check its name")
    raise SourceProblem(SkipReason.MISSING_TEXT_FILE, detail)


def read_text(path: Path) -> str:
    """The text of a line: UTF-8 with or without byte order mark, line breaks at its ends removed.

    Raises:
        SourceProblem: unreadable, or not UTF-8 (with the offset of the first wrong byte).
    """
    try:
        return single_line(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SourceProblem(
            SkipReason.UNREADABLE_TEXT, f"{path} is not UTF-8 (byte {error.start}); convert it"
        ) from error
    except OSError as error:
        raise SourceProblem(
            SkipReason.UNREADABLE_TEXT, f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from error


def _prefixes(name: str) -> Iterator[str]:
    """The name without its last extension, its last two, and so on; the name itself if it has none."""
    dot = name.rfind(".")
    if dot <= 0:
        yield name
    while dot > 0:
        name = name[:dot]
        yield name
        dot = name.rfind(".")
