"""Ground truth in, lines out: the one place that knows all formats.

Whatever is wrong with one file or one line becomes a Skip with a reason; nothing is dropped silently
and nothing about a file's content stops a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from distrib.ground_truth.alto import read_alto
from distrib.ground_truth.extraction import ExtractionProblem, LineExtractor
from distrib.ground_truth.images import MAX_PIXELS, open_image
from distrib.ground_truth.page_xml import read_page_xml
from distrib.ground_truth.pairs import read_pair
from distrib.ground_truth.problems import ImageProblem, SourceProblem
from distrib.ground_truth.records import FormatType, Line, LineImage, LineType, Page, Skip
from distrib.ground_truth.xml import detect_format, parse_xml

__all__ = ["SourceProblem", "read_line_images", "read_page"]


def read_page(
    source: Path, *, format_type: FormatType, linetype: LineType | None = None, textless: bool = False
) -> tuple[Page, list[Skip]]:
    """The page a source describes, and the lines of it that cannot be used.

    The image is neither opened nor required to exist, except for ALTO in other units than pixels.
    ``linetype`` None means ``baselines`` for XML; line images (``path``) are always ``bbox``, and need no
    text file where lines may be ``textless``.

    Raises:
        SourceProblem: the source holds no usable ground truth.
    """
    if format_type == "path":
        return read_pair(source, textless=textless), []
    root = parse_xml(source)
    read = read_alto if detect_format(root, source, format_type=format_type) == "alto" else read_page_xml
    try:
        return read(root, source, line_type=linetype or "baselines")
    except ImageProblem as problem:
        raise SourceProblem(problem.reason, problem.detail) from problem


def read_line_images(
    source: Path,
    *,
    format_type: FormatType,
    linetype: LineType | None = None,
    legacy_polygons: bool = False,
    textless: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[LineImage | Skip]:
    """The line images of a source in document order, after its skipped lines; never raises for bad data.

    A source that cannot be used at all is a single Skip without line id, as is a line image without a text
    file unless lines may be ``textless``.
    """
    try:
        page, skips = read_page(source, format_type=format_type, linetype=linetype, textless=textless)
    except SourceProblem as problem:
        yield Skip(source=source, line_id=None, reason=problem.reason, detail=problem.detail)
        return
    yield from skips
    if not page.lines:
        return
    try:
        image = open_image(page.image, max_pixels=max_pixels)
    except ImageProblem as problem:
        lost = "" if format_type == "path" else f" (lines lost with it: {len(page.lines)})"
        yield Skip(source=source, line_id=None, reason=problem.reason, detail=problem.detail + lost)
        return
    if format_type == "path":
        yield _line_image(page.source, page.lines[0], image)
        return
    extract = LineExtractor(image, line_type=page.line_type, legacy=legacy_polygons)
    for line in page.lines:
        yield _extract(extract, page, line)


def _extract(extract: LineExtractor, page: Page, line: Line) -> LineImage | Skip:
    try:
        return _line_image(page.source, line, extract(line))
    except ExtractionProblem as problem:
        return Skip(source=page.source, line_id=line.id, reason=problem.reason, detail=problem.detail)


def _line_image(source: Path, line: Line, image: Image.Image) -> LineImage:
    return LineImage(
        source=source,
        line_id=line.id,
        text=line.text,
        image=image,
        languages=line.languages,
        split=line.split,
        base_dir=line.base_dir,
    )
