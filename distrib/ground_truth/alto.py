"""Lines of an ALTO document, versions 1 to 4 (https://www.loc.gov/standards/alto/).

Baselines and boundary polygons come in the two notations that are in use, ``x1,y1 x2,y2`` and
``x1 y1 x2 y2``; the one number that ALTO before 4.0 allows as a baseline is its height on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lxml import etree

from distrib.ground_truth.geometry import Box, bounding_box, pair_up, parse_number, parse_numbers
from distrib.ground_truth.images import read_image_header
from distrib.ground_truth.page_lines import LineShape, PageLines, parse_split
from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.records import BaseDirection, LineType, Page, Point, Skip, SkipReason, Split
from distrib.ground_truth.xml import resolve_image

_UNITS_PER_INCH = {"mm10": 254.0, "inch1200": 1200.0}
_DIRECTIONS: dict[str, BaseDirection] = {"ltr": "L", "rtl": "R", "ttb": "L", "btt": "R"}


@dataclass(frozen=True, kw_only=True)
class _Tag:
    kind: str
    label: str


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Pixels per measurement unit, horizontally and vertically."""

    x: float = 1.0
    y: float = 1.0

    def points(self, numbers: list[float]) -> tuple[Point, ...]:
        return tuple((x * self.x, y * self.y) for x, y in pair_up(numbers))


def read_alto(root: etree._Element, source: Path, *, line_type: LineType) -> tuple[Page, list[Skip]]:
    """The page an ALTO document describes, in pixels of its image, and the lines left out.

    The image is looked at only where coordinates are not in pixels.

    Raises:
        SourceProblem: no image is named, or the measurement unit cannot be converted to pixels.
        ImageProblem: coordinates are not in pixels and the image cannot be read.
    """
    image = resolve_image(source, root.findtext("{*}Description/{*}sourceImageInformation/{*}fileName"))
    unit = (root.findtext("{*}Description/{*}MeasurementUnit") or "pixel").strip().lower()
    tags = _read_tags(root)
    collected = PageLines(source=source, line_type=line_type)
    first_image_number: str | None = None
    for number, page in enumerate(root.iterfind("{*}Layout/{*}Page")):
        image_number = page.get("PHYSICAL_IMG_NR")
        if number == 0:
            first_image_number = image_number
        elif image_number != first_image_number:
            _skip_page(page, collected, image)
            continue
        scale = _scale(page, unit, source, image)
        for line in page.iter("{*}TextLine"):
            _add_line(line, scale, tags, collected)
    found = Page(source=source, image=image, line_type=line_type, lines=tuple(collected.lines))
    return found, collected.skips


def _add_line(line: etree._Element, scale: _Scale, tags: Mapping[str, _Tag], collected: PageLines) -> None:
    line_tags = [tags[name] for name in (line.get("TAGREFS") or "").split() if name in tags]
    collected.add(
        line_id=line.get("ID"),
        text=_text(line),
        shape=LineShape(
            baseline=lambda: _baseline(line, scale),
            polygon=lambda: _polygon(line, scale),
            box=lambda: _box(line, scale) or bounding_box(_polygon(line, scale)),
        ),
        languages=_languages(line, line_tags),
        split=_split(line_tags),
        base_dir=_base_dir(line),
    )


def _skip_page(page: etree._Element, collected: PageLines, image: Path) -> None:
    for line in page.iter("{*}TextLine"):
        collected.skip(
            line.get("ID"),
            SkipReason.MISSING_IMAGE,
            f"the line is on image number {page.get('PHYSICAL_IMG_NR')}, the file names only {image}",
        )


def _text(line: etree._Element) -> str:
    """Words and spaces as written; a hyphen at the end belongs to what the image shows.

    A word without content stands for a space, as kraken reads it, unless the line has no other.
    """
    parts: list[str] = []
    for child in line:
        name = etree.QName(child).localname
        if name == "String":
            parts.append(child.get("CONTENT") or " ")
        elif name == "SP":
            parts.append(" ")
        elif name == "HYP":
            hyphen = child.get("CONTENT") or ""
            parts.append("" if parts and parts[-1].endswith(hyphen) else hyphen)
    has_content = any(word.get("CONTENT") for word in line.iterfind("{*}String"))
    return "".join(parts) if has_content else ""


def _baseline(line: etree._Element, scale: _Scale) -> tuple[Point, ...]:
    numbers = parse_numbers(line.get("BASELINE"))
    if len(numbers) != 1:
        return scale.points(numbers)
    box = _box(line, scale) or bounding_box(_polygon(line, scale))
    if box is None:
        raise ValueError("it is a height only, and the line has no bounding box to span")
    height = numbers[0] * scale.y
    return (box[0], height), (box[2], height)


def _polygon(line: etree._Element, scale: _Scale) -> tuple[Point, ...]:
    polygon = line.find("{*}Shape/{*}Polygon")
    return () if polygon is None else scale.points(parse_numbers(polygon.get("POINTS")))


def _box(line: etree._Element, scale: _Scale) -> Box | None:
    left, top, width, height = (parse_number(line.get(name)) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    if left is None or top is None or width is None or height is None:
        return None
    x, y = int(left * scale.x), int(top * scale.y)
    return x, y, x + int(width * scale.x), y + int(height * scale.y)


def _scale(page: etree._Element, unit: str, source: Path, image: Path) -> _Scale:
    if unit in ("pixel", ""):
        return _Scale()
    per_inch = _UNITS_PER_INCH.get(unit)
    if per_inch is None:
        raise SourceProblem(
            SkipReason.WRONG_FORMAT,
            f"{source} measures in {unit!r}; ALTO knows pixel, mm10 and inch1200",
        )
    header = read_image_header(image)
    width, height = parse_number(page.get("WIDTH")), parse_number(page.get("HEIGHT"))
    if width and height and width > 0 and height > 0:
        return _Scale(x=header.width / width, y=header.height / height)
    if header.dpi is not None:
        return _Scale(x=header.dpi[0] / per_inch, y=header.dpi[1] / per_inch)
    raise SourceProblem(
        SkipReason.WRONG_FORMAT,
        f"{source} measures in {unit}, but its Page has no WIDTH and HEIGHT and {image} states no "
        "resolution; add one of them, or export in pixels",
    )


def _read_tags(root: etree._Element) -> dict[str, _Tag]:
    return {
        tag.get("ID", ""): _Tag(kind=tag.get("TYPE", ""), label=tag.get("LABEL", ""))
        for tag in root.iterfind("{*}Tags/*")
    }


def _split(tags: list[_Tag]) -> Split | None:
    # Two splits on one line contradict each other: neither counts.
    labels = [tag.label for tag in tags if tag.kind == "split"]
    return parse_split(labels[0]) if len(labels) == 1 else None


def _languages(line: etree._Element, tags: list[_Tag]) -> tuple[str, ...]:
    """Language tags and LANG of the line; where it has neither, LANG of its block or page."""
    stated = [tag.label for tag in tags if tag.kind == "language" and tag.label]
    own = line.get("LANG")
    if own:
        stated.append(own)
    if not stated:
        inherited = next((value for element in line.iterancestors() if (value := element.get("LANG"))), None)
        stated = [inherited] if inherited else []
    return tuple(dict.fromkeys(stated))


def _base_dir(line: etree._Element) -> BaseDirection | None:
    for element in _self_and_blocks(line):
        direction = _DIRECTIONS.get(element.get("BASEDIRECTION", ""))
        if direction is not None:
            return direction
    return None


def _self_and_blocks(line: etree._Element) -> Iterator[etree._Element]:
    yield line
    yield from line.iterancestors("{*}TextBlock", "{*}ComposedBlock")
