"""Real pages, whole and odd, are read to what can be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from distrib.ground_truth.reader import read_line_images, read_page
from distrib.ground_truth.records import LineImage, LineType, Skip, SkipReason
from distrib.ground_truth.sources import expand_sources

pytestmark = pytest.mark.real

# Lines and skips of each odd file by line type, as counted in kraken 7.1.1, which drops lines without
# baseline silently, fails on those without polygon only when it cuts them, and reads no more than these.
ODD_FILES = {
    "Pierre_et_Marie_Curie_Papiers_[[]...]Curie_Pierre_btv1b90802629_12.xml": (29, {}, 29, {}),
    "Pierre_et_Marie_Curie_Papiers_[[]...]Curie_Pierre_btv1b90802629_4.xml": (55, {}, 55, {}),
    "f.157r.xml": (148, {SkipReason.NO_POLYGON: 1}, 149, {}),
    "TestamentsDePoilus_will_AD78_0064-1.xml": (36, {}, 36, {}),
    "TestamentsDePoilus_will_AD78_0064-4.xml": (46, {}, 46, {}),
    "BULAC_MS_ARA_1926_0114.xml": (10, {SkipReason.NO_BASELINE: 1}, 11, {}),
    "BULAC_MS_ARA_417_0010.xml": (0, {SkipReason.NO_POLYGON: 12}, 0, {SkipReason.NO_POLYGON: 12}),
    "BULAC_BIULO_CHI_1938_1_0117.xml": (75, {}, 75, {}),
    "BULAC_BIULO_CHI_1938_2_0058.xml": (139, {}, 139, {}),
    "bebel_frau_1879_0146.xml": (0, {SkipReason.NO_BASELINE: 50}, 50, {}),
    "bebel_frau_1879_0168.xml": (0, {SkipReason.NO_BASELINE: 55}, 55, {}),
    "bebel_frau_1879_0176.xml": (0, {SkipReason.NO_BASELINE: 51}, 51, {}),
}


def odd_file(real_data: Path, pattern: str) -> Path:
    return next(iter((real_data / "odd-xml").glob(f"*/{pattern}")))


@pytest.mark.parametrize("pattern", ODD_FILES)
def test_odd_files_give_all_usable_lines(real_data: Path, pattern: str) -> None:
    """Lines would be dropped silently or a quirk of one program stop everything."""
    source = odd_file(real_data, pattern)
    baselines, baseline_skips, boxes, box_skips = ODD_FILES[pattern]
    expected: list[tuple[LineType, int, dict[SkipReason, int]]] = [
        ("baselines", baselines, baseline_skips),
        ("bbox", boxes, box_skips),
    ]
    for linetype, lines, reasons in expected:
        page, skips = read_page(source, format_type="xml", linetype=linetype)
        assert len(page.lines) == lines
        assert Counter(skip.reason for skip in skips) == reasons
        assert not any("\n" in line.text for line in page.lines)


@pytest.mark.parametrize(("folder", "what"), [("mets_xml_in_glob", "METS"), ("tei_xml_in_glob", "TEI")])
def test_a_glob_may_match_other_documents(real_data: Path, folder: str, what: str) -> None:
    """The METS or TEI file beside the pages would end the run."""
    (source,) = expand_sources([real_data / "odd-xml" / folder / "*.xml"], format_type="xml")
    (item,) = read_line_images(source, format_type="xml")
    assert isinstance(item, Skip)
    assert item.reason is SkipReason.NOT_GROUND_TRUTH
    assert what in item.detail


def test_page_and_alto_of_the_same_pages_agree(real_data: Path) -> None:
    """One of the two readers would get texts, ids or geometry wrong."""
    pages = sorted((real_data / "hand-fr-page-alto").glob("*.page.xml"))
    assert pages
    for page_source in pages:
        alto_source = page_source.with_name(page_source.name.replace(".page.xml", ".alto.xml"))
        page, page_skips = read_page(page_source, format_type="page")
        alto, alto_skips = read_page(alto_source, format_type="alto")
        assert page.image == alto.image
        assert page.lines == alto.lines
        assert [skip.line_id for skip in page_skips] == [skip.line_id for skip in alto_skips]


@pytest.mark.parametrize("collection", ["print16-alto", "print20-rgba-alto"])
def test_whole_collections_lose_nothing(real_data: Path, collection: str) -> None:
    """Lines would be lost from plain, well-formed collections."""
    sources = expand_sources([real_data / collection / "**" / "*.xml"], format_type="alto")
    assert sources
    for source in sources:
        page, skips = read_page(source, format_type="alto")
        assert len(page.lines) == source.read_text(encoding="utf-8").count("<TextLine ") > 0
        assert all(line.text for line in page.lines)
        assert page.image.parent == source.parent
        assert skips == []


def test_a_missing_image_costs_only_its_page(real_data: Path) -> None:
    """An incomplete download would end the run."""
    (item,) = [
        item
        for item in read_line_images(odd_file(real_data, "f.157r.xml"), format_type="xml")
        if item.line_id is None
    ]
    assert isinstance(item, Skip)
    assert item.reason is SkipReason.MISSING_IMAGE
    assert "f.157r.jpg" in item.detail


@pytest.mark.parametrize(
    ("pattern", "linetype", "lines"),
    [
        ("bebel_frau_1879_0146.xml", "bbox", 50),
        ("TestamentsDePoilus_will_AD78_0064-4.xml", "bbox", 46),
        ("Pierre_et_Marie_Curie_Papiers_[[]...]Curie_Pierre_btv1b90802629_12.xml", "baselines", 29),
    ],
)
def test_line_images_of_odd_pages(real_data: Path, pattern: str, linetype: LineType, lines: int) -> None:
    """Images named relative to a METS file, rotated lines or brackets in names would cost lines."""
    items = list(read_line_images(odd_file(real_data, pattern), format_type="xml", linetype=linetype))
    assert len([item for item in items if isinstance(item, LineImage)]) == lines


def test_transparent_pages_become_colour(real_data: Path) -> None:
    """Pages with an alpha channel would give line images that no data set can hold."""
    source = sorted((real_data / "print20-rgba-alto").glob("**/*.xml"))[0]
    item = next(iter(read_line_images(source, format_type="alto", linetype="bbox")))
    assert isinstance(item, LineImage)
    assert item.image.mode == "RGB"


@pytest.mark.parametrize("collection", ["arabic-lines", "fraktur-lines"])
def test_pairs_of_whole_collections(real_data: Path, collection: str) -> None:
    """Line pairs would be lost or cut."""
    sources = expand_sources([real_data / collection / "*.png"], format_type="path")[:40]
    items = [item for source in sources for item in read_line_images(source, format_type="path")]
    assert len(items) == len(sources)
    assert all(isinstance(item, LineImage) and item.text for item in items)
