"""Any source in, line images and reasons out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth.reader import SourceProblem, read_line_images, read_page
from distrib.ground_truth.records import FormatType, LineImage, LineType, Skip, SkipReason

PAGE_LINE = (
    '<TextLine id="{name}" custom="split {{type:test;}}" primaryLanguage="German" '
    'readingDirection="right-to-left">'
    '<Coords points="{left},10 90,10 90,40 {left},40"/><Baseline points="{left},35 90,35"/>'
    "<TextEquiv><Unicode>{text}</Unicode></TextEquiv></TextLine>"
)


def page_xml(*lines: str, image: str = "im.png") -> str:
    return (
        '<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">'
        f'<Page imageFilename="{image}"><TextRegion id="r">{"".join(lines)}</TextRegion></Page></PcGts>'
    )


def alto(image: str = "im.png") -> str:
    return (
        '<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Description><sourceImageInformation>'
        f"<fileName>{image}</fileName></sourceImageInformation></Description><Layout><Page><PrintSpace>"
        '<TextBlock><TextLine ID="l1" HPOS="10" VPOS="10" WIDTH="80" HEIGHT="30" BASELINE="10 35 90 35">'
        '<Shape><Polygon POINTS="10 10 90 10 90 40 10 40"/></Shape><String CONTENT="abc"/></TextLine>'
        "</TextBlock></PrintSpace></Page></Layout></alto>"
    )


def line(name: str = "l1", text: str = "abc", left: int = 10) -> str:
    return PAGE_LINE.format(name=name, text=text, left=left)


def write(folder: Path, document: str, *, image: str | None = "im.png") -> Path:
    """A source t.xml in the folder and, unless told otherwise, the image it names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t.xml").write_text(document, encoding="utf-8")
    if image is not None:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (60, 100), np.uint8)
        Image.fromarray(noise).save(folder / image, format="PNG")
    return folder / "t.xml"


def read(
    source: Path, format_type: FormatType = "xml", linetype: LineType | None = None
) -> list[LineImage | Skip]:
    return list(read_line_images(source, format_type=format_type, linetype=linetype))


def only_skip(source: Path, format_type: FormatType = "xml") -> Skip:
    items = read(source, format_type)
    assert len(items) == 1
    assert isinstance(items[0], Skip)
    assert items[0].line_id is None
    assert items[0].source == source
    return items[0]


@pytest.mark.parametrize("format_type", ["xml", "page"])
@pytest.mark.parametrize("linetype", ["baselines", "bbox", None])
def test_everything_known_about_a_line_arrives(
    tmp_path: Path, format_type: FormatType, linetype: LineType | None
) -> None:
    """Split, languages, direction or text would be lost between the file and the data set."""
    source = write(tmp_path, page_xml(line()))
    (item,) = read(source, format_type, linetype)
    assert isinstance(item, LineImage)
    assert (item.source, item.line_id, item.text) == (source, "l1", "abc")
    assert (item.languages, item.split, item.base_dir) == (("deu",), "test", "R")
    assert item.image.mode == "L"
    width, height = item.image.size
    assert abs(width - 80) <= 1
    assert abs(height - 30) <= 1


def test_a_bad_line_is_a_skip_among_good_ones(tmp_path: Path) -> None:
    """One line that leaves the image would cost its whole page."""
    source = write(tmp_path, page_xml(line("a"), line("b", left=-200), line("c")))
    items = read(source)
    assert [item.line_id for item in items] == ["a", "b", "c"]
    assert isinstance(items[1], Skip)
    assert items[1].reason is SkipReason.OUTSIDE_IMAGE


def test_lines_without_text_are_yielded(tmp_path: Path) -> None:
    """Whether to keep empty lines is for compile to decide."""
    (item,) = read(write(tmp_path, page_xml(line(text=""))))
    assert isinstance(item, LineImage)
    assert item.text == ""


def test_a_pair_is_its_whole_image(tmp_path: Path) -> None:
    """Line images would be cut, or reported under a name that is not theirs."""
    write(tmp_path, "", image="0001.bin.png")
    (tmp_path / "0001.gt.txt").write_text("abc\n", encoding="utf-8")
    source = tmp_path / "0001.bin.png"
    (item,) = read(source, "path")
    assert isinstance(item, LineImage)
    assert (item.source, item.line_id, item.text) == (source, "0001.bin.png", "abc")
    assert item.image.size == (100, 60)


def test_texts_need_no_images(tmp_path: Path) -> None:
    """Counting an alphabet would read every image of a collection."""
    source = write(tmp_path, page_xml(line()), image=None)
    page, skips = read_page(source, format_type="xml")
    assert [found.text for found in page.lines] == ["abc"]
    assert page.image == tmp_path / "im.png"
    assert skips == []


def test_a_missing_image_is_one_skip_that_names_it(tmp_path: Path) -> None:
    """The user would not know which file is missing nor how much is lost; a namesake must not stand in."""
    source = write(tmp_path, page_xml(line("a"), line("b"), image="gone.jpg"), image="t.png")
    skip = only_skip(source)
    assert skip.reason is SkipReason.MISSING_IMAGE
    assert str(tmp_path / "gone.jpg") in skip.detail
    assert "lines lost with it: 2" in skip.detail


@pytest.mark.parametrize(
    ("named", "stored"),
    [
        ("a b [1].png", "a b [1].png"),
        (" im.png ", "im.png"),
        ("a%20b.png", "a b.png"),
        ("a%20b.png", "a%20b.png"),
        ("file:im.png", "im.png"),
        ("sub/im.png", "sub/im.png"),
        ("sub\\im.png", "sub/im.png"),
        ("GT-PAGE/im.png", "im.png"),
        ("IMG/im.png", "../IMG/im.png"),
        ("../images/im.png", "../images/im.png"),
        ("C:\\scans\\im.png", "im.png"),
    ],
)
@pytest.mark.parametrize("document", [lambda name: page_xml(line(), image=name), alto])
def test_images_are_found_as_named(tmp_path: Path, named: str, stored: str, document: object) -> None:
    """Exports with odd but unambiguous names of their image would be skipped."""
    assert callable(document)
    source = write(tmp_path / "pages", document(named), image=stored)
    (item,) = read(source)
    assert isinstance(item, LineImage), item


def test_absolute_names_and_file_urls(tmp_path: Path) -> None:
    """Exports that name their image absolutely would be skipped."""
    source = write(tmp_path / "a b", page_xml(line()))
    image = tmp_path / "a b" / "im.png"
    for name in (str(image), image.as_uri()):
        other = write(tmp_path / "elsewhere", page_xml(line(), image=name), image=None)
        assert isinstance(read(other)[0], LineImage)
    assert isinstance(read(source)[0], LineImage)


@pytest.mark.parametrize("name", ["", "  ", "x" * 5000, "a&#9;b/../../c"])
def test_hopeless_image_names_are_skips(tmp_path: Path, name: str) -> None:
    """A name that no file can have would end in a traceback."""
    skip = only_skip(write(tmp_path, page_xml(line(), image=name), image=None))
    assert skip.reason in (SkipReason.MISSING_IMAGE, SkipReason.UNREADABLE_IMAGE)


@pytest.mark.parametrize(
    ("document", "format_type", "remedy"),
    [(page_xml(line()), "alto", "-f page or -f xml"), (alto(), "page", "-f alto or -f xml")],
)
def test_the_wrong_format_names_the_right_one(
    tmp_path: Path, document: str, format_type: FormatType, remedy: str
) -> None:
    """The user would be told that an intact file is broken."""
    skip = only_skip(write(tmp_path, document), format_type)
    assert skip.reason is SkipReason.WRONG_FORMAT
    assert remedy in skip.detail


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ('<mets xmlns="http://www.loc.gov/METS/"/>', "METS"),
        ('<TEI xmlns="http://www.tei-c.org/ns/1.0"/>', "TEI"),
        ("<html/>", "hOCR"),
        ("<anything/>", "<anything>"),
    ],
)
@pytest.mark.parametrize("format_type", ["xml", "alto", "page"])
def test_other_documents_are_named(tmp_path: Path, document: str, what: str, format_type: FormatType) -> None:
    """The METS file in a glob would stop everything, or be skipped without saying what it is."""
    skip = only_skip(write(tmp_path, document, image=None), format_type)
    assert skip.reason is SkipReason.NOT_GROUND_TRUTH
    assert what in skip.detail


def test_a_missing_source_is_a_skip(tmp_path: Path) -> None:
    """A manifest's entry that is gone would end the run."""
    assert only_skip(tmp_path / "gone.xml").reason is SkipReason.MISSING_FILE
    assert only_skip(tmp_path).reason is SkipReason.MISSING_FILE


def test_a_page_beyond_the_limit_is_a_skip(tmp_path: Path) -> None:
    """An image that fills the memory would end the run."""
    source = write(tmp_path, page_xml(line()))
    (item,) = read_line_images(source, format_type="xml", max_pixels=5999)
    assert isinstance(item, Skip)
    assert item.reason is SkipReason.IMAGE_TOO_LARGE


def test_a_damaged_image_is_a_skip(tmp_path: Path) -> None:
    """An image that broke in a transfer would end the run."""
    source = write(tmp_path, page_xml(line()))
    image = tmp_path / "im.png"
    image.write_bytes(image.read_bytes()[:2000])
    assert only_skip(source).reason is SkipReason.UNREADABLE_IMAGE


def test_lines_without_geometry_are_told_even_without_an_image(tmp_path: Path) -> None:
    """Why a page gives nothing would be hidden behind its missing image."""
    document = page_xml(line()).replace('<Baseline points="10,35 90,35"/>', "")
    (item,) = read(write(tmp_path, document, image=None))
    assert isinstance(item, Skip)
    assert (item.line_id, item.reason) == ("l1", SkipReason.NO_BASELINE)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([page_xml(line()), alto()]), st.data())
def test_damaged_documents_never_raise(tmp_path: Path, document: str, data: st.DataObject) -> None:
    """Whatever a damaged file holds, it is a reason for that file, not the end of the run."""
    position = data.draw(st.integers(0, len(document) - 1))
    length = data.draw(st.integers(0, 30))
    inserted = data.draw(st.text(alphabet='0 ,-.<>&"=xe٣\n', max_size=8))
    source = write(tmp_path, document[:position] + inserted + document[position + length :], image=None)
    try:
        page, skips = read_page(source, format_type="xml")
    except SourceProblem:
        return
    assert len(page.lines) + len(skips) <= 1


@pytest.mark.oracle
@pytest.mark.real
@pytest.mark.parametrize("name", ["alto", "page"])
def test_texts_of_recorded_data_sets(oracle_dir: Path, real_data: Path, name: str) -> None:
    """A data set compiled by us would differ in texts or order from kraken's."""
    pyarrow = pytest.importorskip("pyarrow")
    files = json.loads((oracle_dir / f"{name}.files.json").read_text())
    recorded = pyarrow.ipc.open_file(str(oracle_dir / f"{name}.arrow")).read_all().column("lines").to_pylist()
    suffixes = ("", ".xml", ".page.xml") if name == "page" else ("", ".xml", ".alto.xml")
    texts: list[str] = []
    for file in files:
        candidates = (found for suffix in suffixes for found in real_data.glob(f"**/{file}{suffix}"))
        page, _ = read_page(next(candidates), format_type=name)  # type: ignore[arg-type]
        texts += [found.text for found in page.lines]
    assert sorted(texts) == sorted(row["text"] for row in recorded)
