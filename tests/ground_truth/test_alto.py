"""ALTO documents: geometry, text, tags, units."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.reader import read_page
from distrib.ground_truth.records import Line, LineType, Page, Skip, SkipReason

NAMESPACE = "http://www.loc.gov/standards/alto/ns-v4#"
SHAPE = '<Shape><Polygon POINTS="10 10 200 10 200 60 10 60"/></Shape>'
BOX = 'HPOS="10" VPOS="10" WIDTH="190" HEIGHT="50"'
BASELINE = 'BASELINE="10 50 200 50"'
WORD = '<String CONTENT="abc"/>'
CORNERS = ((10, 10), (200, 10), (200, 60), (10, 60))


def text_line(
    *,
    content: str = WORD,
    attributes: str = BASELINE,
    shape: str = SHAPE,
    box: str = BOX,
    name: str = 'ID="l1"',
) -> str:
    return f"<TextLine {name} {box} {attributes}>{shape}{content}</TextLine>"


def alto(
    lines: str,
    *,
    unit: str = "<MeasurementUnit>pixel</MeasurementUnit>",
    tags: str = "",
    page: str = 'WIDTH="1000" HEIGHT="2000"',
    block: str = "",
    namespace: str = NAMESPACE,
    file_name: str = "im.png",
) -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><alto xmlns="{namespace}"><Description>{unit}'
        f"<sourceImageInformation><fileName>{file_name}</fileName></sourceImageInformation></Description>"
        f'<Tags>{tags}</Tags><Layout><Page PHYSICAL_IMG_NR="1" {page}><PrintSpace><TextBlock ID="b" {block}>'
        f"{lines}</TextBlock></PrintSpace></Page></Layout></alto>"
    )


def read(folder: Path, document: str, linetype: LineType = "baselines") -> tuple[Page, list[Skip]]:
    (folder / "t.xml").write_text(document, encoding="utf-8")
    return read_page(folder / "t.xml", format_type="alto", linetype=linetype)


def only_line(folder: Path, document: str, linetype: LineType = "baselines") -> Line:
    page, skips = read(folder, document, linetype)
    assert skips == []
    assert len(page.lines) == 1
    return page.lines[0]


def only_skip(folder: Path, document: str, linetype: LineType = "baselines") -> Skip:
    page, skips = read(folder, document, linetype)
    assert page.lines == ()
    assert len(skips) == 1
    return skips[0]


@pytest.mark.parametrize(
    "notation",
    [
        "10 50 200 50",
        "10,50 200,50",
        "10, 50 200, 50",
        "10.4 50.6 200.5 50",
        "10  50\n200 50",
        "10,50;200,50",
        "50",
    ],
)
def test_every_baseline_notation(tmp_path: Path, notation: str) -> None:
    """Files of one of the programs that write ALTO would lose all lines."""
    line = only_line(tmp_path, alto(text_line(attributes=f'BASELINE="{notation}"')))
    assert line.baseline == ((10, 50), (200, 50))
    assert line.boundary == CORNERS


@pytest.mark.parametrize("notation", ["10 10 200 10 200 60 10 60", "10,10 200,10 200,60 10,60"])
def test_both_polygon_notations(tmp_path: Path, notation: str) -> None:
    """Polygons of half of all programs would be lost."""
    line = only_line(tmp_path, alto(text_line(shape=f'<Shape><Polygon POINTS="{notation}"/></Shape>')))
    assert line.boundary == CORNERS


def test_a_repeated_point_is_one_point(tmp_path: Path) -> None:
    """A piece of baseline without length would break its straightening."""
    line = only_line(tmp_path, alto(text_line(attributes='BASELINE="10 50 10 50 100 50 100 50 200 50"')))
    assert line.baseline == ((10, 50), (100, 50), (200, 50))


@pytest.mark.parametrize(
    ("attributes", "shape", "reason"),
    [
        ("", SHAPE, SkipReason.NO_BASELINE),
        ('BASELINE=""', SHAPE, SkipReason.NO_BASELINE),
        ('BASELINE="10 50 200"', SHAPE, SkipReason.NO_BASELINE),
        ('BASELINE="a b c d"', SHAPE, SkipReason.NO_BASELINE),
        ('BASELINE="nan 1 2 3"', SHAPE, SkipReason.NO_BASELINE),
        ('BASELINE="1e300 1 2 3"', SHAPE, SkipReason.NO_BASELINE),
        ('BASELINE="10 50"', SHAPE, SkipReason.SHORT_BASELINE),
        ('BASELINE="10 50 10 50"', SHAPE, SkipReason.SHORT_BASELINE),
        (BASELINE, "", SkipReason.NO_POLYGON),
        (BASELINE, '<Shape><Polygon POINTS=""/></Shape>', SkipReason.NO_POLYGON),
        (BASELINE, '<Shape><Polygon POINTS="1 2 3"/></Shape>', SkipReason.NO_POLYGON),
        (BASELINE, '<Shape><Ellipse HPOS="1" VPOS="2"/></Shape>', SkipReason.NO_POLYGON),
        (BASELINE, '<Shape><Polygon POINTS="1 2 3 4 1 2"/></Shape>', SkipReason.DEGENERATE_POLYGON),
    ],
)
def test_a_line_without_its_geometry_is_a_skip(
    tmp_path: Path, attributes: str, shape: str, reason: SkipReason
) -> None:
    """One odd line would stop everything, or vanish without being counted."""
    skip = only_skip(tmp_path, alto(text_line(attributes=attributes, shape=shape)))
    assert (skip.reason, skip.line_id) == (reason, "l1")


def test_a_bad_line_leaves_the_others(tmp_path: Path) -> None:
    """A page would be lost with its one odd line."""
    page, skips = read(tmp_path, alto(text_line(attributes="") + text_line(name='ID="l2"')))
    assert [line.id for line in page.lines] == ["l2"]
    assert [skip.line_id for skip in skips] == ["l1"]


def test_boxes_need_neither_baseline_nor_polygon(tmp_path: Path) -> None:
    """ALTO of plain OCR, without baselines, could not be trained on."""
    line = only_line(tmp_path, alto(text_line(attributes="", shape="")), "bbox")
    assert line.baseline is None
    assert line.boundary == CORNERS


def test_a_missing_box_is_taken_from_the_polygon(tmp_path: Path) -> None:
    """Lines with polygons only would be lost as boxes."""
    assert only_line(tmp_path, alto(text_line(box="")), "bbox").boundary == CORNERS


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ("", SkipReason.NO_POLYGON),
        ('HPOS="10" VPOS="x" WIDTH="190" HEIGHT="50"', SkipReason.NO_POLYGON),
        ('HPOS="10" VPOS="10" WIDTH="0" HEIGHT="50"', SkipReason.DEGENERATE_POLYGON),
        ('HPOS="10" VPOS="10" WIDTH="-5" HEIGHT="50"', SkipReason.DEGENERATE_POLYGON),
    ],
)
def test_an_unusable_box_is_a_skip(tmp_path: Path, box: str, reason: SkipReason) -> None:
    """An empty crop would be compiled."""
    assert only_skip(tmp_path, alto(text_line(box=box, shape="")), "bbox").reason is reason


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('<String CONTENT="a"/><SP/><String CONTENT="b"/>', "a b"),
        ('<String CONTENT="a"/><String CONTENT="b"/>', "ab"),
        ('<String CONTENT="a"/><SP/><SP/><String CONTENT="b"/>', "a  b"),
        ('<SP/><String CONTENT="a"/><SP/>', " a "),
        ('<String CONTENT=" a  b "/>', " a  b "),
        ('<String CONTENT="a&#10;b"/>', "a b"),
        ('<String CONTENT="fo"/><HYP CONTENT="-"/>', "fo-"),
        ('<String CONTENT="fo-"/><HYP CONTENT="-"/>', "fo-"),
        ('<String CONTENT="fo"/><HYP/>', "fo"),
        ('<String CONTENT="a"/><String/><String CONTENT="b"/>', "a b"),
        ('<String CONTENT="a"><ALTERNATIVE>b</ALTERNATIVE><Glyph CONTENT="x"/></String>', "a"),
        ('<String CONTENT="\ue8bf\U000f0001"/>', "\ue8bf\U000f0001"),
        ("<!-- c --><?pi x?>stray text", ""),
        ("<String/>", ""),
        ('<String CONTENT=""/><SP/>', ""),
        ("", ""),
    ],
)
def test_text_of_a_line(tmp_path: Path, content: str, expected: str) -> None:
    """Labels would not say what the image shows; lines without text must be kept for compile to decide."""
    assert only_line(tmp_path, alto(text_line(content=content))).text == expected


@pytest.mark.parametrize(
    ("tags", "refs", "expected"),
    [
        ('<OtherTag ID="a" TYPE="split" LABEL="train"/>', "a", "train"),
        ('<LayoutTag ID="a" TYPE="split" LABEL="validation"/>', "b a", "validation"),
        ('<OtherTag ID="a" TYPE="split" LABEL="test"/>', "a", "test"),
        ('<OtherTag ID="a" TYPE="split" LABEL="dev"/>', "a", None),
        ('<OtherTag ID="a" TYPE="type" LABEL="train"/>', "a", None),
        (
            '<OtherTag ID="a" TYPE="split" LABEL="train"/><OtherTag ID="b" TYPE="split" LABEL="test"/>',
            "a b",
            None,
        ),
        ('<OtherTag ID="a" TYPE="split" LABEL="train"/>', "", None),
    ],
)
def test_splits_are_tags(tmp_path: Path, tags: str, refs: str, expected: str | None) -> None:
    """A split written for kraken would be ignored, and test lines trained on."""
    document = alto(text_line(attributes=f'{BASELINE} TAGREFS="{refs}"'), tags=tags)
    assert only_line(tmp_path, document).split == expected


@pytest.mark.parametrize(
    ("line", "block", "page", "expected"),
    [
        ('LANG="deu"', 'LANG="lat"', 'LANG="ita"', ("deu",)),
        ("", 'LANG="lat"', 'LANG="ita"', ("lat",)),
        ("", "", 'LANG="ita"', ("ita",)),
        ('TAGREFS="a"', 'LANG="lat"', "", ("fra",)),
        ('TAGREFS="a" LANG="deu"', "", "", ("fra", "deu")),
        ("", "", "", ()),
    ],
)
def test_languages_are_inherited(
    tmp_path: Path, line: str, block: str, page: str, expected: tuple[str, ...]
) -> None:
    """The languages in a data set would differ from those that kraken records."""
    tags = '<OtherTag ID="a" TYPE="language" LABEL="fra"/>'
    assert (
        only_line(
            tmp_path, alto(text_line(attributes=f"{BASELINE} {line}"), tags=tags, block=block, page=page)
        ).languages
        == expected
    )


@pytest.mark.parametrize(
    ("value", "expected"), [("rtl", "R"), ("ltr", "L"), ("ttb", "L"), ("btt", "R"), ("x", None)]
)
def test_direction_of_line_and_block(tmp_path: Path, value: str, expected: str | None) -> None:
    """Right-to-left lines would be reordered by guess although the file states their direction."""
    attribute = f'BASEDIRECTION="{value}"'
    assert only_line(tmp_path, alto(text_line(attributes=f"{BASELINE} {attribute}"))).base_dir == expected
    assert only_line(tmp_path, alto(text_line(), block=attribute)).base_dir == expected
    line = text_line(attributes=f'{BASELINE} BASEDIRECTION="ltr"')
    assert only_line(tmp_path, alto(line, block=attribute)).base_dir == "L"


@pytest.mark.parametrize("unit", ["<MeasurementUnit> pixel </MeasurementUnit>", "<MeasurementUnit/>", ""])
def test_pixels_need_no_image(tmp_path: Path, unit: str) -> None:
    """Reading texts only would touch every image."""
    assert only_line(tmp_path, alto(text_line(), unit=unit, page="")).boundary == CORNERS


@pytest.mark.parametrize(
    ("unit", "page", "factor"),
    [
        ("mm10", 'WIDTH="500" HEIGHT="1000"', 2),
        ("inch1200", 'WIDTH="4000" HEIGHT="8000"', 0.25),
        ("mm10", "", 300 / 254),
        ("inch1200", "", 0.25),
    ],
)
def test_other_units_are_converted(tmp_path: Path, unit: str, page: str, factor: float) -> None:
    """Lines of files measured in millimetres or inches would be cut from the wrong place."""
    Image.new("L", (1000, 2000), 255).save(tmp_path / "im.png", dpi=(300, 300))
    document = alto(text_line(), unit=f"<MeasurementUnit>{unit}</MeasurementUnit>", page=page)
    line = only_line(tmp_path, document)
    assert line.baseline is not None
    assert line.boundary is not None
    for (x, y), (unscaled_x, unscaled_y) in zip(line.boundary, CORNERS, strict=True):
        assert abs(x - unscaled_x * factor) <= 1
        assert abs(y - unscaled_y * factor) <= 1
    box = only_line(tmp_path, document, "bbox").boundary
    assert box is not None
    assert abs(box[2][0] - 200 * factor) <= 2


@pytest.mark.parametrize(
    ("unit", "page", "size", "reason"),
    [
        ("furlong", 'WIDTH="1" HEIGHT="1"', True, SkipReason.WRONG_FORMAT),
        ("mm10", "", True, SkipReason.WRONG_FORMAT),
        ("mm10", 'WIDTH="0" HEIGHT="x"', True, SkipReason.WRONG_FORMAT),
        ("mm10", 'WIDTH="1" HEIGHT="1"', False, SkipReason.MISSING_IMAGE),
    ],
)
def test_units_that_cannot_be_converted(
    tmp_path: Path, unit: str, page: str, size: bool, reason: SkipReason
) -> None:
    """Coordinates of unknown size would be taken for pixels."""
    if size:
        Image.new("L", (100, 100)).save(tmp_path / "im.png")
    with pytest.raises(SourceProblem) as caught:
        read(tmp_path, alto(text_line(), unit=f"<MeasurementUnit>{unit}</MeasurementUnit>", page=page))
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "namespace",
    [
        "http://www.loc.gov/standards/alto/ns-v2#",
        "http://www.loc.gov/standards/alto/ns-v3#",
        "http://schema.ccs-gmbh.com/ALTO",
        "",
    ],
)
def test_every_version_is_read(tmp_path: Path, namespace: str) -> None:
    """Older files would be refused."""
    assert only_line(tmp_path, alto(text_line(), namespace=namespace)).text == "abc"


def test_missing_and_repeated_ids_become_unique(tmp_path: Path) -> None:
    """Two lines with one id would be taken for one, and one of them lost."""
    lines = text_line() + text_line() + text_line(name="") + text_line(name="") + text_line(name='ID="l1-2"')
    page, _ = read(tmp_path, alto(lines))
    ids = [line.id for line in page.lines]
    assert len(set(ids)) == 5
    assert ids[0] == "l1"


def test_lines_outside_plain_blocks_are_read(tmp_path: Path) -> None:
    """Marginal notes and lines of composed blocks would be missed."""
    composed, marginal = (text_line(name=f'ID="{name}"') for name in "cm")
    inner = f"<ComposedBlock><TextBlock>{composed}</TextBlock></ComposedBlock>"
    margin = f"<LeftMargin><TextBlock>{marginal}</TextBlock></LeftMargin>"
    document = alto(text_line()).replace("<PrintSpace>", margin + "<PrintSpace>" + inner)
    page, _ = read(tmp_path, document)
    assert [line.id for line in page.lines] == ["m", "c", "l1"]


def test_lines_of_another_image_are_skips(tmp_path: Path) -> None:
    """Lines of a second scan would be cut from the first."""
    block = f"<TextBlock>{text_line(name='')}</TextBlock>"
    other = f'<Page PHYSICAL_IMG_NR="2"><PrintSpace>{block}</PrintSpace></Page>'
    page, skips = read(tmp_path, alto(text_line()).replace("</Layout>", other + "</Layout>"))
    assert len(page.lines) == 1
    assert [skip.reason for skip in skips] == [SkipReason.MISSING_IMAGE]
