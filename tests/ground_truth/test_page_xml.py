"""PAGE documents: geometry, text, custom tags, direction, languages."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.reader import read_page
from distrib.ground_truth.records import Line, LineType, Page, Skip, SkipReason

NAMESPACE = "http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15"
COORDS = '<Coords points="10,10 200,10 200,60 10,60"/>'
BASELINE = '<Baseline points="10,50 200,50"/>'
CORNERS = ((10, 10), (200, 10), (200, 60), (10, 60))


def equiv(text: str, attributes: str = "") -> str:
    return f"<TextEquiv {attributes}><Unicode>{text}</Unicode></TextEquiv>"


def text_line(
    *,
    text: str = "<TextEquiv><Unicode>abc</Unicode></TextEquiv>",
    attributes: str = "",
    coords: str = COORDS,
    baseline: str = BASELINE,
    name: str = 'id="l1"',
) -> str:
    return f"<TextLine {name} {attributes}>{coords}{baseline}{text}</TextLine>"


def page_xml(lines: str, *, page: str = "", region: str = "", namespace: str = NAMESPACE) -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><PcGts xmlns="{namespace}">'
        f'<Page imageFilename="im.png" {page}>'
        f'<TextRegion id="r" {region}>{COORDS}{lines}</TextRegion></Page></PcGts>'
    )


def read(folder: Path, document: str, linetype: LineType = "baselines") -> tuple[Page, list[Skip]]:
    (folder / "t.xml").write_text(document, encoding="utf-8")
    return read_page(folder / "t.xml", format_type="page", linetype=linetype)


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
    "baseline",
    [
        BASELINE,
        '<Baseline points="10,50 200,50 "/>',
        '<Baseline points="10 50 200 50"/>',
        '<Baseline points="10, 50 200, 50"/>',
        '<Baseline points="10.6,50.2 200,50"/>',
        '<Baseline points="10,50 10,50 200,50"/>',
        '<Baseline><Point x="10" y="50"/><Point x="200" y="50"/></Baseline>',
    ],
)
def test_every_baseline_notation(tmp_path: Path, baseline: str) -> None:
    """Files of one of the programs or versions of PAGE would lose all lines."""
    line = only_line(tmp_path, page_xml(text_line(baseline=baseline)))
    assert line.baseline == ((10, 50), (200, 50))
    assert line.boundary == CORNERS


@pytest.mark.parametrize(
    ("coords", "baseline", "reason"),
    [
        (COORDS, "", SkipReason.NO_BASELINE),
        (COORDS, "<Baseline/>", SkipReason.NO_BASELINE),
        (COORDS, '<Baseline points=""/>', SkipReason.NO_BASELINE),
        (COORDS, '<Baseline points="a,b c,d"/>', SkipReason.NO_BASELINE),
        (COORDS, '<Baseline><Point x="1"/></Baseline>', SkipReason.NO_BASELINE),
        (COORDS, '<Baseline points="10,50"/>', SkipReason.SHORT_BASELINE),
        ("", BASELINE, SkipReason.NO_POLYGON),
        ('<Coords points=""/>', BASELINE, SkipReason.NO_POLYGON),
        ('<Coords points="10,10 20"/>', BASELINE, SkipReason.NO_POLYGON),
        ('<Coords points="10,10 20,20"/>', BASELINE, SkipReason.DEGENERATE_POLYGON),
    ],
)
def test_a_line_without_its_geometry_is_a_skip(
    tmp_path: Path, coords: str, baseline: str, reason: SkipReason
) -> None:
    """One odd line would stop everything, or vanish without being counted."""
    skip = only_skip(tmp_path, page_xml(text_line(coords=coords, baseline=baseline)))
    assert (skip.reason, skip.line_id) == (reason, "l1")


def test_boxes_are_bounds_of_the_polygon(tmp_path: Path) -> None:
    """PAGE without baselines, such as OCR-D's, could not be trained on."""
    coords = '<Coords points="10,30 100,10 200,30 100,60"/>'
    line = only_line(tmp_path, page_xml(text_line(baseline="", coords=coords)), "bbox")
    assert line.baseline is None
    assert line.boundary == CORNERS


@pytest.mark.parametrize(
    "coords", ["", '<Coords points=""/>', '<Coords points="x"/>', '<Coords points="1,1 9,1"/>']
)
def test_an_unusable_box_is_a_skip(tmp_path: Path, coords: str) -> None:
    """An empty crop would be compiled."""
    skip = only_skip(tmp_path, page_xml(text_line(coords=coords)), "bbox")
    assert skip.reason in (SkipReason.NO_POLYGON, SkipReason.DEGENERATE_POLYGON)


WORDS = f'<Word id="a">{equiv("w1")}</Word><Word id="b">{equiv("w2")}</Word>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (equiv("one", 'index="1"') + equiv("zero", 'index="0"'), "one"),
        (equiv("a", 'conf="0.1"') + equiv("b", 'conf="0.9"'), "a"),
        (WORDS, "w1 w2"),
        (WORDS + equiv("line"), "line"),
        (WORDS + equiv(""), ""),
        (f'<Word id="a"><Glyph id="g">{equiv("x")}</Glyph><Glyph id="h">{equiv("y")}</Glyph></Word>', "xy"),
        ("", ""),
        ("<TextEquiv/>", ""),
        ("<TextEquiv><PlainText>abc</PlainText><Unicode>def</Unicode></TextEquiv>", "def"),
        (equiv("a\nb"), "a b"),
        (equiv("中\n\n文"), "中 文"),
        (equiv("  a  b "), "  a  b "),
        (equiv("a<!-- x -->d<?pi y?>e"), "ade"),
        (equiv("<![CDATA[a&b]]>"), "a&b"),
    ],
)
def test_text_of_a_line(tmp_path: Path, text: str, expected: str) -> None:
    """Labels would not say what the image shows; lines without text must be kept for compile to decide."""
    assert only_line(tmp_path, page_xml(text_line(text=text))).text == expected


@pytest.mark.parametrize(
    ("custom", "expected"),
    [
        ("split {type:train;}", "train"),
        ("readingOrder {index:0;} split{type:validation}", "validation"),
        ("structure {type:heading; id:2;} split { type : test ; }", "test"),
        ("split {type:dev;}", None),
        ("split {type:train;} split {type:test;}", None),
        ("split {set:train;}", None),
        ("split {}", None),
        ("structure {type:train;}", None),
        ("{bad", None),
        ("}{;:{}", None),
    ],
)
def test_splits_are_custom_tags(tmp_path: Path, custom: str, expected: str | None) -> None:
    """A split written for kraken would be ignored, or an odd custom attribute stop everything."""
    assert only_line(tmp_path, page_xml(text_line(attributes=f'custom="{custom}"'))).split == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("left-to-right", "L"),
        ("right-to-left", "R"),
        ("top-to-bottom", "L"),
        ("bottom-to-top", "R"),
        ("rtl", None),
    ],
)
def test_direction_is_inherited(tmp_path: Path, value: str, expected: str | None) -> None:
    """Right-to-left lines would be reordered by guess although the file states their direction."""
    attribute = f'readingDirection="{value}"'
    own = 'readingDirection="left-to-right"'
    assert only_line(tmp_path, page_xml(text_line(attributes=attribute))).base_dir == expected
    assert only_line(tmp_path, page_xml(text_line(), region=attribute)).base_dir == expected
    assert only_line(tmp_path, page_xml(text_line(), page=attribute)).base_dir == expected
    assert only_line(tmp_path, page_xml(text_line(attributes=own), region=attribute)).base_dir == "L"


@pytest.mark.parametrize(
    ("line", "region", "page", "expected"),
    [
        ('primaryLanguage="German"', "", "", ("deu",)),
        ('primaryLanguage="Arabic" secondaryLanguage="Latin"', "", "", ("ara", "lat")),
        ("", 'primaryLanguage="French"', 'primaryLanguage="English"', ("fra",)),
        ("", "", 'primaryLanguage="de"', ("deu",)),
        ('primaryLanguage="Middle French"', 'primaryLanguage="French"', "", ("Middle French",)),
        ('custom="language {type:deu;}"', 'primaryLanguage="French"', "", ("deu",)),
        ('custom="language {type:deu;}" primaryLanguage="French"', "", "", ("deu", "fra")),
        ("", "", "", ()),
    ],
)
def test_languages_are_inherited_and_coded(
    tmp_path: Path, line: str, region: str, page: str, expected: tuple[str, ...]
) -> None:
    """The languages in a data set would differ from those that kraken records."""
    document = page_xml(text_line(attributes=line), region=region, page=page)
    assert only_line(tmp_path, document).languages == expected


@pytest.mark.parametrize("year", ["2009-03-16", "2013-07-15", "2017-07-15", "2019-07-15"])
def test_every_version_is_read(tmp_path: Path, year: str) -> None:
    """Older files would be refused."""
    namespace = f"http://schema.primaresearch.org/PAGE/gts/pagecontent/{year}"
    assert only_line(tmp_path, page_xml(text_line(), namespace=namespace)).text == "abc"


def test_lines_of_nested_regions_are_read_in_document_order(tmp_path: Path) -> None:
    """Lines in tables and nested regions would be missed."""
    nested = f'<TextRegion id="n">{COORDS}{text_line(name="")}</TextRegion>'
    table = f'<TableRegion id="t">{COORDS}{nested}</TableRegion></Page>'
    document = page_xml(text_line() + nested).replace("</Page>", table)
    page, _ = read(tmp_path, document)
    assert [line.id for line in page.lines] == ["l1", "line-2", "line-3"]


def test_a_document_without_page_is_no_ground_truth(tmp_path: Path) -> None:
    """An empty export would end in a traceback."""
    with pytest.raises(SourceProblem) as caught:
        read(tmp_path, f'<PcGts xmlns="{NAMESPACE}"><Metadata/></PcGts>')
    assert caught.value.reason is SkipReason.NOT_GROUND_TRUTH
