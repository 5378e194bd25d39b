"""The pages of the sample: setting lines in columns, and describing them as ALTO and as PAGE."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from PIL import Image

from distrib.ground_truth.records import Line, Point, Split
from distrib.ground_truth.sample_drawing import Ink, Pixels, Typesetter, print_ink
from distrib.ground_truth.sample_text import LANGUAGES, excerpt

Layout = Literal["straight", "curved", "columns"]
LAYOUTS: tuple[Layout, ...] = ("straight", "curved", "columns")

_WIDTH, _MARGIN = 1000, 60
_LINES = {"straight": 10, "curved": 10, "columns": 9}
"""Lines of a column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnPage:
    """A page: its picture (mode L) and the columns of lines on it."""

    image: Image.Image
    columns: tuple[tuple[Line, ...], ...]


def draw_page(bits: np.random.Philox, layout: Layout) -> DrawnPage:
    """Set and print one page.

    ``straight`` lines have two-point baselines, a little sloped; ``curved`` ones five to nine points;
    ``columns`` has two narrow columns of shorter, slightly curved lines.
    """
    rng = np.random.Generator(bits.jumped())
    size = {"straight": 34.0, "curved": 32.0, "columns": 27.0}[layout]
    column_count = 2 if layout == "columns" else 1
    column_width = (_WIDTH - (column_count + 1) * _MARGIN) // column_count
    leading = round(size * (2.3 if layout == "curved" else 1.8))
    height = _LINES[layout] * leading + 2 * _MARGIN
    sheet = np.zeros((height, _WIDTH), dtype=np.float32)
    columns: list[tuple[Line, ...]] = []
    for column in range(column_count):
        left = _MARGIN + column * (column_width + _MARGIN)
        language = LANGUAGES[int(bits.random_raw()) % len(LANGUAGES)]
        lines: list[Line] = []
        for row in range(_LINES[layout]):
            number = column * _LINES[layout] + row
            text, ink = _set_line(bits, rng, language, layout, size, column_width)
            x, y = left, _MARGIN + row * leading + int(rng.integers(0, 4))
            _lay_down(sheet, ink.coverage, x, y)
            lines.append(_describe(ink, x, y, text=text, number=number, language=language, layout=layout))
        columns.append(tuple(lines))
    return DrawnPage(image=print_ink(sheet, rng), columns=tuple(columns))


def _set_line(
    bits: np.random.Philox,
    rng: np.random.Generator,
    language: str,
    layout: Layout,
    size: float,
    room: int,
) -> tuple[str, Ink]:
    longest = int(room / (0.5 * size))
    text = excerpt(bits, language, longest * 2 // 3, longest)
    size *= rng.uniform(0.92, 1.05)
    slant = rng.uniform(-0.05, 0.15)
    slope = rng.uniform(-0.008, 0.008)
    sag = {"straight": 0.0, "curved": rng.uniform(-0.6, 0.6), "columns": rng.uniform(-0.15, 0.15)}[layout]
    ink = Typesetter(size).set(text, slant=slant, slope=slope, sag=sag * size)
    width = ink.coverage.shape[1]
    if width > room:
        # Smaller letters, not fewer: the texts of a sample do not depend on the version of the font.
        smaller = size * (room - 2) / width
        ink = Typesetter(smaller).set(text, slant=slant, slope=slope, sag=sag * smaller)
    return text, ink


def _lay_down(sheet: Pixels, coverage: Pixels, x: int, y: int) -> None:
    height, width = coverage.shape
    place = sheet[y : y + height, x : x + width]
    np.maximum(place, coverage, out=place)


def _describe(ink: Ink, x: int, y: int, *, text: str, number: int, language: str, layout: Layout) -> Line:
    """Where the line is, in whole pixels: the baseline just under its letters and the polygon around."""
    width = len(ink.baseline)
    count = 2 if layout == "straight" else 5 + number % 5
    at = np.linspace(0, width - 1, count).round().astype(int)
    baseline = [(x + int(column), y + round(float(ink.baseline[column]))) for column in at]
    # Finer than the baseline, so that the polygon of a curved line keeps its distance to it.
    around = [
        (x + int(c), y + float(ink.baseline[c])) for c in np.linspace(0, width - 1, 9).round().astype(int)
    ]
    upper = [(px, round(py - ink.ascent)) for px, py in around]
    lower = [(px, round(py + ink.descent)) for px, py in reversed(around)]
    return Line(
        id=f"line_{number + 1}",
        text=text,
        baseline=tuple(baseline),
        boundary=tuple(upper + lower),
        languages=(language,),
        split=_split(number),
    )


def _split(number: int) -> Split:
    return "validation" if number % 10 == 4 else "test" if number % 10 == 9 else "train"


def alto(page: DrawnPage, image_name: str) -> str:
    """The page as ALTO 4; languages and splits are tags."""
    languages = sorted({language for lines in page.columns for line in lines for language in line.languages})
    tags = [f'<OtherTag ID="lang_{name}" TYPE="language" LABEL="{name}"/>' for name in languages]
    tags += [f'<OtherTag ID="split_{s}" TYPE="split" LABEL="{s}"/>' for s in ("train", "validation", "test")]
    blocks = "\n".join(
        f'<TextBlock ID="block_{number}" {_alto_box(_hull(lines))}>\n'
        + "\n".join(_alto_line(line) for line in lines)
        + "\n</TextBlock>"
        for number, lines in enumerate(page.columns, 1)
    )
    width, height = page.image.size
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#">
<Description>
<MeasurementUnit>pixel</MeasurementUnit>
<sourceImageInformation><fileName>{escape(image_name)}</fileName></sourceImageInformation>
</Description>
<Tags>{"".join(tags)}</Tags>
<Layout>
<Page ID="page_1" PHYSICAL_IMG_NR="1" WIDTH="{width}" HEIGHT="{height}">
<PrintSpace HPOS="0" VPOS="0" WIDTH="{width}" HEIGHT="{height}">
{blocks}
</PrintSpace>
</Page>
</Layout>
</alto>
"""


def _alto_line(line: Line) -> str:
    tags = " ".join([*(f"lang_{name}" for name in line.languages), f"split_{line.split}"])
    box = _alto_box(line.boundary or ())
    return (
        f'<TextLine ID="{line.id}" BASELINE="{_points(line.baseline, " ")}" TAGREFS="{tags}" {box}>'
        f'<Shape><Polygon POINTS="{_points(line.boundary, " ")}"/></Shape>'
        f'<String CONTENT="{escape(line.text)}" {box}/></TextLine>'
    )


def _alto_box(points: tuple[Point, ...]) -> str:
    left, top, right, bottom = _box(points)
    return f'HPOS="{left:g}" VPOS="{top:g}" WIDTH="{right - left:g}" HEIGHT="{bottom - top:g}"'


def page_xml(page: DrawnPage, image_name: str) -> str:
    """The page as PAGE (2019-07-15); languages are attributes, splits are in ``custom``."""
    regions = "\n".join(
        f'<TextRegion id="region_{number}"><Coords points="{_points(_corners(_hull(lines)), ",")}"/>\n'
        + "\n".join(_page_line(line) for line in lines)
        + "\n</TextRegion>"
        for number, lines in enumerate(page.columns, 1)
    )
    width, height = page.image.size
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">
<Metadata>
<Creator>ketos sample</Creator>
<Created>2000-01-01T00:00:00</Created>
<LastChange>2000-01-01T00:00:00</LastChange>
</Metadata>
<Page imageFilename="{escape(image_name)}" imageWidth="{width}" imageHeight="{height}">
{regions}
</Page>
</PcGts>
"""


_PAGE_LANGUAGES = {"deu": "German", "fra": "French", "eng": "English", "lat": "Latin"}


def _page_line(line: Line) -> str:
    language = "".join(f' primaryLanguage="{_PAGE_LANGUAGES[name]}"' for name in line.languages[:1])
    return (
        f'<TextLine id="{line.id}" custom="split {{type:{line.split};}}"{language}>'
        f'<Coords points="{_points(line.boundary, ",")}"/><Baseline points="{_points(line.baseline, ",")}"/>'
        f"<TextEquiv><Unicode>{escape(line.text, quote=False)}</Unicode></TextEquiv></TextLine>"
    )


def _points(points: tuple[Point, ...] | None, within: str) -> str:
    return " ".join(f"{x:g}{within}{y:g}" for x, y in points or ())


def _hull(lines: tuple[Line, ...]) -> tuple[Point, ...]:
    return tuple(point for line in lines for point in line.boundary or ())


def _box(points: tuple[Point, ...]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _corners(points: tuple[Point, ...]) -> tuple[Point, ...]:
    left, top, right, bottom = _box(points)
    return (left, top), (right, top), (right, bottom), (left, bottom)
