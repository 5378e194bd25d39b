"""XML from outside must not read files, reach the network or fill the memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from distrib.ground_truth.reader import SourceProblem, read_page
from distrib.ground_truth.records import SkipReason

BODY = (
    "<alto><Description><sourceImageInformation><fileName>a.png</fileName></sourceImageInformation></Description>"
    '<Layout><Page><PrintSpace><TextBlock><TextLine ID="l" BASELINE="1 1 90 1">'
    '<Shape><Polygon POINTS="0 0 90 0 90 9"/></Shape><String CONTENT="{content}"/>'
    "</TextLine></TextBlock></PrintSpace></Page></Layout></alto>"
)
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


def reason(source: Path) -> SkipReason:
    with pytest.raises(SourceProblem) as caught:
        read_page(source, format_type="xml")
    assert str(source) in caught.value.detail
    return caught.value.reason


def written(folder: Path, doctype: str, content: str, encoding: str = "utf-8") -> Path:
    source = folder / "t.xml"
    declaration = f'<?xml version="1.0" encoding="{encoding}"?>'
    source.write_bytes((declaration + doctype + BODY.replace("{content}", content)).encode(encoding))
    return source


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
@pytest.mark.parametrize(
    ("doctype", "content"),
    [
        ('<!DOCTYPE alto [<!ENTITY x "boo">]>', "&x;"),
        ('<!DOCTYPE alto [<!ENTITY x "unused">]>', "abc"),
        ('<!DOCTYPE alto [<!ENTITY x SYSTEM "file:///etc/passwd">]>', "abc"),
        ('<!DOCTYPE alto [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]>', "abc"),
        ('<!DOCTYPE alto PUBLIC "a" "alto.dtd" [<!ENTITY x PUBLIC "b" "c">]>', "abc"),
        (f'<!DOCTYPE alto [<!ENTITY l0 "ha">{LAUGHS}]>', "&l11;"),
    ],
)
def test_declared_entities_are_refused(tmp_path: Path, doctype: str, content: str, encoding: str) -> None:
    """A file would be able to read others, call out, or grow to gigabytes."""
    started = time.monotonic()
    assert reason(written(tmp_path, doctype, content, encoding)) is SkipReason.UNSAFE_XML
    assert time.monotonic() - started < 2


def test_an_external_subset_is_never_loaded(tmp_path: Path) -> None:
    """A definition beside the file would decide what its text says, or text with its entities vanish."""
    (tmp_path / "alto.dtd").write_text('<!ENTITY x "from outside">')
    doctype = '<!DOCTYPE alto SYSTEM "alto.dtd">'
    assert reason(written(tmp_path, doctype, "a&x;b")) is SkipReason.UNSAFE_XML
    page, _ = read_page(written(tmp_path, doctype, "a&amp;b&#233;"), format_type="xml")
    assert page.lines[0].text == "a&bé"


def test_a_plain_document_type_is_harmless(tmp_path: Path) -> None:
    """Files that merely name their document type would be refused."""
    page, _ = read_page(written(tmp_path, "<!DOCTYPE alto>", "abc"), format_type="xml")
    assert page.lines[0].text == "abc"


@pytest.mark.parametrize(
    "content",
    [b"<alto>\n<Layout>\n</alto>", b"", b"  \n", b"plain text", b"<alto", b"\xff\xfe<", b"<alto>\xe9</alto>"],
)
def test_malformed_files_are_named(tmp_path: Path, content: bytes) -> None:
    """A broken file would end the run, or be reported without saying what is wrong."""
    source = tmp_path / "t.xml"
    source.write_bytes(content)
    assert reason(source) is SkipReason.MALFORMED_XML


def test_malformed_files_name_the_line(tmp_path: Path) -> None:
    """The user would have to search a long file for the mistake."""
    source = tmp_path / "t.xml"
    source.write_text("<alto>\n<Layout>\n</alto>")
    with pytest.raises(SourceProblem, match="line 3"):
        read_page(source, format_type="xml")


def test_undeclared_entities_are_malformed(tmp_path: Path) -> None:
    """Text would silently lack a character."""
    assert reason(written(tmp_path, "", "a&auml;b")) is SkipReason.MALFORMED_XML


def test_absurd_depth_is_refused(tmp_path: Path) -> None:
    """A deeply nested file would exhaust the stack."""
    source = tmp_path / "t.xml"
    source.write_text("<alto>" + "<a>" * 100_000 + "</a>" * 100_000 + "</alto>")
    assert reason(source) is SkipReason.MALFORMED_XML
