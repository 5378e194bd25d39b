"""The sample ground truth: complete, readable as what it claims to be, and the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lxml import etree
from PIL import Image

from distrib.errors import InputError
from distrib.ground_truth.alto import read_alto
from distrib.ground_truth.page_xml import read_page_xml
from distrib.ground_truth.records import Page
from distrib.ground_truth.sample import SampleSummary, write_sample
from distrib.ground_truth.sample_drawing import Typesetter
from distrib.ground_truth.sample_text import LANGUAGES, PASSAGES


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    return write_sample(tmp_path_factory.mktemp("sample") / "new" / "folder", pairs=8, pages=6)


def read(directory: Path, name: str) -> Page:
    source = directory / f"{name}.xml"
    reader = read_alto if name.startswith("alto") else read_page_xml
    page, skips = reader(etree.parse(source).getroot(), source, line_type="baselines")
    assert skips == []
    return page


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_pages_are_read_back_whole(sample: SampleSummary) -> None:
    """Broken: a page of the sample is not valid ground truth, or loses its languages or splits."""
    pages = [read(sample.directory, f"{kind}/000{n}") for kind in ("alto", "page") for n in (1, 2, 3)]
    lines = [line for page in pages for line in page.lines]
    assert len(lines) == sample.page_lines
    assert {line.split for line in lines} == {"train", "validation", "test"}
    assert {name for line in lines for name in line.languages} <= set(LANGUAGES)
    assert all(len(line.languages) == 1 and line.text for line in lines)


def test_both_shapes_of_baseline_in_both_formats(sample: SampleSummary) -> None:
    """Broken: a benchmark or test on the sample leaves one way of straightening lines untouched."""
    for kind in ("alto", "page"):
        straight, curved = (read(sample.directory, f"{kind}/000{n}") for n in (1, 2))
        assert {len(line.baseline or ()) for line in straight.lines} == {2}
        assert {len(line.baseline or ()) for line in curved.lines} == {5, 6, 7, 8, 9}


@pytest.mark.parametrize("name", ["alto/0001", "alto/0002", "page/0003"])
def test_lines_are_where_their_description_says(sample: SampleSummary, name: str) -> None:
    """Broken: polygons leave the page, miss letters, or the baseline is not under the letters."""
    page = read(sample.directory, name)
    with Image.open(page.image) as image:
        dark = np.asarray(image) < 150
    height, width = dark.shape
    outside = dark.copy()
    for line in page.lines:
        boundary, baseline = np.array(line.boundary), np.array(line.baseline)
        assert (boundary >= 0).all()
        assert (boundary < (width, height)).all()
        columns = np.arange(int(baseline[0, 0]), int(baseline[-1, 0]))
        under = np.rint(np.interp(columns, baseline[:, 0], baseline[:, 1])).astype(int)
        half = len(boundary) // 2
        top = np.interp(columns, boundary[:half, 0], boundary[:half, 1]).astype(int)
        bottom = np.interp(columns, boundary[: half - 1 : -1, 0], boundary[: half - 1 : -1, 1]).astype(int)
        for column, first, last in zip(columns, top, bottom, strict=True):
            outside[first : last + 1, column] = False
        feet = sum(dark[row - 4 : row, column].any() for row, column in zip(under, columns, strict=True))
        below = sum(dark[row + 2 : row + 5, column].any() for row, column in zip(under, columns, strict=True))
        assert feet > 3 * below
    assert not outside.any()


def test_pairs_have_text_and_picture(sample: SampleSummary) -> None:
    """Broken: line pairs do not go together, or are all of one size."""
    pictures = sorted((sample.directory / "lines").glob("*.png"))
    assert len(pictures) == sample.pairs == 8
    sizes = set()
    for picture in pictures:
        text = picture.with_suffix(".gt.txt").read_text("utf-8")
        assert 1 < len(text.strip()) <= 36
        assert set(text.strip()) <= set(sample.alphabet)
        with Image.open(picture) as image:
            assert image.mode == "L"
            sizes.add(image.size)
            assert np.ptp(np.asarray(image)) > 100
    assert len({height for _, height in sizes}) > 2


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Broken: a benchmark run twice does not run on the same data."""
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        write_sample(tmp_path / name, pairs=3, pages=2, seed=seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert all(one[name] != three[name] for name in one if name.endswith((".png", ".xml")))


def test_larger_sample_starts_with_the_smaller(tmp_path: Path) -> None:
    """Broken: asking for more lines changes those one had."""
    write_sample(tmp_path / "few", pairs=2, pages=2)
    write_sample(tmp_path / "more", pairs=3, pages=4)
    few, more = contents(tmp_path / "few"), contents(tmp_path / "more")
    assert all(more[name] == content for name, content in few.items() if name != "README.md")


def test_texts_do_not_change_between_versions(tmp_path: Path) -> None:
    """Broken: figures for the sample, published or kept, are no longer about the same texts."""
    write_sample(tmp_path / "s", pairs=3, pages=0)
    texts = [(tmp_path / "s" / "lines" / f"000{n}.gt.txt").read_text("utf-8") for n in (1, 2, 3)]
    assert texts == TEXTS


TEXTS = ["Es ist der Vater\n", "or no money in my purse, I thought\n", "coeptis, nam vos\n"]


@pytest.mark.parametrize("letter", sorted(set("".join(PASSAGES.values())) - {" "}))
def test_every_letter_has_its_own_picture(letter: str) -> None:
    """Broken: a letter of the texts is drawn as the font's box for missing glyphs, or without its accent."""
    drawn = Typesetter(40).set(letter).coverage
    for other in ("\uffff", *"aceoucAOU"):
        compared = Typesetter(40).set(other).coverage
        assert letter == other or drawn.shape != compared.shape or (drawn != compared).any()
    assert drawn.max() > 0.9


def test_occupied_directory_is_refused(tmp_path: Path) -> None:
    """Broken: the sample is mixed into somebody's files."""
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        write_sample(tmp_path, pairs=1, pages=0)
    with pytest.raises(InputError, match=r"mine\.txt"):
        write_sample(tmp_path / "mine.txt", pairs=1, pages=0)
    with pytest.raises(InputError, match="negative"):
        write_sample(tmp_path / "new", pairs=-1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
