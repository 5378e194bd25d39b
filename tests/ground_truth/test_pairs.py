"""Line images with their texts beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.ground_truth.pairs import read_pair, read_text
from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.records import SkipReason


def pair(folder: Path, image: str, texts: dict[str, bytes]) -> Path:
    """An image file (its content is never looked at) and text files."""
    (folder / image).write_bytes(b"")
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    return folder / image


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("a.png", "a.gt.txt"),
        ("a.bin.png", "a.gt.txt"),
        ("a.nrm.png", "a.gt.txt"),
        ("a.x.y.png", "a.gt.txt"),
        ("a.bin.png", "a.bin.gt.txt"),
        ("a b [1].png", "a b [1].gt.txt"),
        ("a", "a.gt.txt"),
    ],
)
def test_the_text_is_found_beside_the_image(tmp_path: Path, image: str, text: str) -> None:
    """Data named as ocropy, kraken or calamari name it would be taken for incomplete."""
    page = read_pair(pair(tmp_path, image, {text: b"abc\n"}))
    assert page.line_type == "bbox"
    assert [(line.id, line.text) for line in page.lines] == [(image, "abc")]


def test_the_closest_name_wins(tmp_path: Path) -> None:
    """Pages numbered after a dot would all get the first one's text."""
    page = read_pair(pair(tmp_path, "p.001.png", {"p.gt.txt": b"wrong", "p.001.gt.txt": b"right"}))
    assert page.lines[0].text == "right"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain", "plain"),
        (b"\xef\xbb\xbfbom\n", "bom"),
        (b"  K  lead  \n\n", "  K  lead  "),
        (b"two\r\nlines\r\n", "two lines"),
        (b"", ""),
        (b"   \n", "   "),
    ],
)
def test_text_is_read_raw_without_line_breaks(tmp_path: Path, content: bytes, expected: str) -> None:
    """A byte order mark or line break would become a character to recognise."""
    path = tmp_path / "a.gt.txt"
    path.write_bytes(content)
    assert read_text(path) == expected


def test_a_txt_in_place_of_gt_txt_is_pointed_out(tmp_path: Path) -> None:
    """The commonest mistake with pairs would be reported as missing data only."""
    with pytest.raises(SourceProblem, match=r"there is a\.txt: rename it to a\.gt\.txt") as caught:
        read_pair(pair(tmp_path, "a.png", {"a.txt": b"abc"}))
    assert caught.value.reason is SkipReason.MISSING_TEXT_FILE


def test_a_missing_text_names_what_was_looked_for(tmp_path: Path) -> None:
    """The user would not know which name is expected."""
    with pytest.raises(SourceProblem, match=r"no text file a\.bin\.gt\.txt"):
        read_pair(pair(tmp_path, "a.bin.png", {}))


def test_a_missing_image_is_said_to_be_missing(tmp_path: Path) -> None:
    """A line of a manifest with a typing mistake would be reported as lacking its text."""
    with pytest.raises(SourceProblem) as caught:
        read_pair(tmp_path / "gone.png")
    assert caught.value.reason is SkipReason.MISSING_IMAGE


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """Latin-1 text would be learned as replacement characters."""
    with pytest.raises(SourceProblem, match=r"not UTF-8 \(byte 3\)") as caught:
        read_pair(pair(tmp_path, "a.png", {"a.gt.txt": b"caf\xe9"}))
    assert caught.value.reason is SkipReason.UNREADABLE_TEXT


@pytest.mark.parametrize("name", ["a.gt.txt", "a.xml"])
def test_what_a_careless_glob_matches_is_named(tmp_path: Path, name: str) -> None:
    """Text or XML files among the images would be reported as broken images."""
    (tmp_path / name).write_text("abc")
    with pytest.raises(SourceProblem, match="name the images") as caught:
        read_pair(tmp_path / name)
    assert caught.value.reason is SkipReason.NOT_GROUND_TRUTH


def test_an_image_without_text_is_a_line_without_text_where_none_is_needed(tmp_path: Path) -> None:
    """Pretraining looks at images alone; a text that is there and damaged is still said to be."""
    page = read_pair(pair(tmp_path, "a.png", {}), textless=True)
    assert [line.text for line in page.lines] == [""]
    assert read_pair(pair(tmp_path, "b.png", {"b.gt.txt": b"text"}), textless=True).lines[0].text == "text"
    with pytest.raises(SourceProblem, match="not UTF-8"):
        read_pair(pair(tmp_path, "c.png", {"c.gt.txt": b"caf\xe9"}), textless=True)
    with pytest.raises(SourceProblem, match="does not exist"):
        read_pair(tmp_path / "gone.png", textless=True)
