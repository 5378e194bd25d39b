"""Lines of a PAGE document, versions 2009 to 2019 (https://www.primaresearch.org/schema/PAGE/)."""

from __future__ import annotations

import re
from pathlib import Path

from lxml import etree

from distrib.ground_truth.geometry import bounding_box, parse_number, parse_points
from distrib.ground_truth.languages import language_code
from distrib.ground_truth.page_lines import LineShape, PageLines, parse_split
from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.records import BaseDirection, LineType, Page, Point, Skip, SkipReason, Split
from distrib.ground_truth.xml import resolve_image

_DIRECTIONS: dict[str, BaseDirection] = {
    "left-to-right": "L",
    "right-to-left": "R",
    "top-to-bottom": "L",
    "bottom-to-top": "R",
}
# The CSS-like notation of Transkribus: ``structure {type:heading;} split {type:train;}``.
_CUSTOM_ENTRY = re.compile(r"([\w-]+)\s*\{([^{}]*)\}")


def read_page_xml(root: etree._Element, source: Path, *, line_type: LineType) -> tuple[Page, list[Skip]]:
    """The page a PAGE document describes and the lines left out; the image is not looked at.

    Raises:
        SourceProblem: the document has no Page element or names no image.
    """
    page = root.find("{*}Page")
    if page is None:
        raise SourceProblem(
            SkipReason.NOT_GROUND_TRUTH, f"{source} is PAGE without a Page element; leave it out"
        )
    image = resolve_image(source, page.get("imageFilename"))
    collected = PageLines(source=source, line_type=line_type)
    for line in page.iter("{*}TextLine"):
        _add_line(line, collected)
    found = Page(source=source, image=image, line_type=line_type, lines=tuple(collected.lines))
    return found, collected.skips


def _add_line(line: etree._Element, collected: PageLines) -> None:
    tags = _custom_types(line)
    # Two splits on one line contradict each other: neither counts.
    splits = tags.get("split", [])
    collected.add(
        line_id=line.get("id"),
        text=_text(line),
        shape=LineShape(
            baseline=lambda: _points(line, "{*}Baseline"),
            polygon=lambda: _points(line, "{*}Coords"),
            box=lambda: bounding_box(_points(line, "{*}Coords")),
        ),
        languages=_languages(line, tags.get("language", [])),
        split=_only(splits),
        base_dir=_base_dir(line),
    )


def _only(splits: list[str]) -> Split | None:
    return parse_split(splits[0]) if len(splits) == 1 else None


def _text(line: etree._Element) -> str:
    """The line's first text, in document order; where it has none the words', joined by spaces.

    Its ``index`` is not looked at, as kraken does not.
    """
    own = _own_text(line)
    if own is not None:
        return own
    words = (_word_text(word) for word in line.iterfind("{*}Word"))
    return " ".join(word for word in words if word)


def _word_text(word: etree._Element) -> str:
    own = _own_text(word)
    if own is not None:
        return own
    return "".join(_own_text(glyph) or "" for glyph in word.iterfind("{*}Glyph"))


def _own_text(element: etree._Element) -> str | None:
    unicode_text = element.find("{*}TextEquiv/{*}Unicode")
    return None if unicode_text is None else "".join(str(part) for part in unicode_text.itertext())


def _points(line: etree._Element, child: str) -> tuple[Point, ...]:
    """Points of the ``points`` attribute, or of the Point elements that PAGE before 2013 has."""
    element = line.find(child)
    if element is None:
        return ()
    attribute = element.get("points")
    if attribute is not None:
        return parse_points(attribute)
    points = []
    for point in element.iterfind("{*}Point"):
        x, y = parse_number(point.get("x")), parse_number(point.get("y"))
        if x is None or y is None:
            raise ValueError(f"({point.get('x')}, {point.get('y')}) is not a point")
        points.append((x, y))
    return tuple(points)


def _custom_types(line: etree._Element) -> dict[str, list[str]]:
    """The ``type`` of each entry of the custom attribute, by the entry's name."""
    types: dict[str, list[str]] = {}
    for name, body in _CUSTOM_ENTRY.findall(line.get("custom") or ""):
        fields = dict(entry.split(":", 1) for entry in body.split(";") if ":" in entry)
        value = {key.strip(): value.strip() for key, value in fields.items()}.get("type")
        if value:
            types.setdefault(name, []).append(value)
    return types


def _languages(line: etree._Element, tagged: list[str]) -> tuple[str, ...]:
    """Languages tagged on the line, then those of the nearest element that names any."""
    found = list(tagged)
    if not found or _named_languages(line):
        nearest = (names for element in (line, *line.iterancestors()) if (names := _named_languages(element)))
        found += next(nearest, [])
    return tuple(dict.fromkeys(language_code(name) for name in found))


def _named_languages(element: etree._Element) -> list[str]:
    names = (element.get("primaryLanguage"), element.get("secondaryLanguage"))
    return [name.strip() for name in names if name and name.strip()]


def _base_dir(line: etree._Element) -> BaseDirection | None:
    for element in (line, *line.iterancestors()):
        direction = _DIRECTIONS.get(element.get("readingDirection", ""))
        if direction is not None:
            return direction
    return None
