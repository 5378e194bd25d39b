"""What a command line names: files, globs and manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from distrib.errors import InputError
from distrib.ground_truth.sources import expand_sources, read_manifest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with sources a.xml, b.xml and one whose name looks like a glob."""
    for name in ("b.xml", "a.xml", "page [1].xml", "page 1.xml"):
        (tmp_path / name).write_text("<x/>")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_globs_are_sorted_and_nothing_is_named_twice(folder: Path) -> None:
    """The order of a data set would depend on the file system, or a page count twice."""
    found = expand_sources(["*.xml", "./a.xml", folder / "b.xml"], format_type="xml")
    assert names(found) == ["a.xml", "b.xml", "page 1.xml", "page [1].xml"]


def test_the_order_of_arguments_is_kept(folder: Path) -> None:
    """Sources would be compiled in another order than the one given."""
    assert names(expand_sources(["b.xml", "a.xml"], format_type="xml")) == ["b.xml", "a.xml"]


def test_a_literal_name_wins_over_its_glob_meaning(folder: Path) -> None:
    """'page [1].xml' would select 'page 1.xml', another page."""
    assert names(expand_sources(["page [1].xml"], format_type="xml")) == ["page [1].xml"]


def test_brackets_in_a_glob_may_be_meant_literally(folder: Path) -> None:
    """Files of a collection with brackets in its name could not be globbed."""
    (folder / "Papiers_[...]_1.xml").write_text("<x/>")
    assert names(expand_sources(["Papiers_[...]_*.xml"], format_type="xml")) == ["Papiers_[...]_1.xml"]


def test_two_stars_cross_folders_and_skip_them(folder: Path) -> None:
    """Nested collections would be missed, or folders handed to the reader."""
    (folder / "book" / "deep.xml").mkdir(parents=True)
    (folder / "book" / "c.xml").write_text("<x/>")
    assert names(expand_sources(["**/c.xml", "book/*"], format_type="xml")) == ["c.xml"]


@pytest.mark.parametrize("argument", ["missing.xml", "*.tif", "[x].tif"])
def test_what_names_nothing_is_an_error(folder: Path, argument: str) -> None:
    """A typing mistake would end in an empty data set."""
    with pytest.raises(InputError, match=r"missing\.xml|tif"):
        expand_sources([argument], format_type="xml")


@pytest.mark.parametrize(("format_type", "pattern"), [("path", "*.png"), ("alto", "*.xml")])
def test_a_folder_is_an_error_with_the_remedy(folder: Path, format_type: str, pattern: str) -> None:
    """The user would not be told what to write instead."""
    with pytest.raises(InputError) as caught:
        expand_sources([folder], format_type=format_type)  # type: ignore[arg-type]
    assert pattern in str(caught.value)


def test_a_manifest_is_relative_to_here_then_to_itself(folder: Path) -> None:
    """A manifest kept beside its data, or one written from the working directory, would not work."""
    (folder / "set").mkdir()
    (folder / "set" / "inside.xml").write_text("<x/>")
    (folder / "set" / "a.xml").write_text("<other/>")
    manifest = folder / "set" / "train.lst"
    manifest.write_text("\ufeffa.xml\r\n\n  \ninside.xml  \ngone.xml\n/absolute/gone.xml")
    assert read_manifest(manifest) == [
        Path("a.xml"),
        folder / "set" / "inside.xml",
        Path("gone.xml"),
        Path("/absolute/gone.xml"),
    ]


def test_manifests_and_arguments_are_one_list(folder: Path) -> None:
    """A page named in both would be compiled twice."""
    (folder / "m.lst").write_text("a.xml\nb.xml\n")
    assert names(expand_sources(["b.xml"], [Path("m.lst")], format_type="xml")) == ["b.xml", "a.xml"]


def test_names_need_not_be_utf8_or_free_of_odd_separators(folder: Path) -> None:
    """Files with old encodings or separators in their names could not be listed."""
    odd = Path(b"caf\xe9.xml".decode("utf-8", "surrogateescape"))
    try:
        odd.write_text("<x/>")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (folder / "a\u2028b.xml").write_text("<x/>")
    (folder / "m.lst").write_bytes(b"caf\xe9.xml\n" + "a\u2028b.xml\n".encode())
    assert all(path.exists() for path in expand_sources([], [Path("m.lst")], format_type="xml"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lists no files"),
        (b"\n  \n", "lists no files"),
        (b"\x89PNG\r\n\x1a\n", "binary"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "binary"),
        (b"ARROW1\0\0", "binary"),
        (b"a.xml\n\0\n", "binary"),
        (b"<?xml version='1.0'?><alto/>", "XML"),
    ],
)
def test_what_is_no_manifest_is_an_error(tmp_path: Path, content: bytes, words: str) -> None:
    """A file given to the manifest option by mistake would be read as a list of nonsense names."""
    manifest = tmp_path / "m.lst"
    manifest.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        read_manifest(manifest)
    assert str(manifest) in str(caught.value)


def test_a_missing_manifest_or_a_folder_is_an_error(tmp_path: Path) -> None:
    """Either would end in a traceback."""
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path / "none")
    with pytest.raises(InputError, match="folder"):
        read_manifest(tmp_path)
