"""Safe parsing of XML from outside, and telling ALTO, PAGE and what is neither apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from lxml import etree

from distrib.ground_truth.problems import SourceProblem
from distrib.ground_truth.records import FormatType, SkipReason

XmlFormat = Literal["alto", "page"]

_ROOTS: dict[str, XmlFormat] = {"alto": "alto", "PcGts": "page"}
_OTHER_DOCUMENTS = {
    "mets": "a METS file, which lists pages but holds none",
    "TEI": "a TEI file, which holds text without lines on an image",
    "teiCorpus": "a TEI file, which holds text without lines on an image",
    "html": "an HTML or hOCR file",
    "document": "an ABBYY XML file",
    "GcGts": "a PAGE file of another kind than page content",
}


_ENTITY_REFERENCE = re.compile(rb"&(?!(?:lt|gt|amp|quot|apos);)[A-Za-z_:][\w.:-]*;")


class _RootReached(Exception):
    """Ends the scan of a document's prolog."""


def parse_xml(source: Path) -> etree._Element:
    """The root element of an XML file, parsed without entities, DTD, network or unlimited trees.

    Comments and processing instructions are dropped.

    Raises:
        SourceProblem: missing, malformed (with the line number), or a document that declares entities.
    """
    try:
        data = source.read_bytes()
    except FileNotFoundError as error:
        raise SourceProblem(SkipReason.MISSING_FILE, f"{source} does not exist; check its name") from error
    except OSError as error:
        raise SourceProblem(
            SkipReason.MISSING_FILE,
            f"{source} cannot be read ({error.strerror}); check its name and permissions",
        ) from error
    if not data.strip():
        raise SourceProblem(SkipReason.MALFORMED_XML, f"{source} is empty; leave it out")
    _refuse_entities(data, source)
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise SourceProblem(SkipReason.MALFORMED_XML, _syntax_problem(data, source, error)) from error
    # With an external subset undeclared entities are no error, and text would silently lack them.
    if root.getroottree().docinfo.internalDTD is not None and _ENTITY_REFERENCE.search(data):
        raise SourceProblem(
            SkipReason.UNSAFE_XML,
            f"{source} uses an entity of a document type definition, which is not loaded; "
            "write out what it stands for",
        )
    return root


def detect_format(root: etree._Element, source: Path, *, format_type: FormatType) -> XmlFormat:
    """Which of ALTO and PAGE a document is, from its root element.

    Raises:
        SourceProblem: neither, or not the one that ``format_type`` asks for.
    """
    name = etree.QName(root).localname
    found = _ROOTS.get(name)
    if found is None:
        what = _OTHER_DOCUMENTS.get(name, f"an XML file of another kind (its root is <{name}>)")
        raise SourceProblem(SkipReason.NOT_GROUND_TRUTH, f"{source} is {what}; leave it out")
    if format_type != "xml" and format_type != found:
        raise SourceProblem(
            SkipReason.WRONG_FORMAT,
            f"{source} is {found.upper()}, not {format_type.upper()}: use -f {found} or -f xml",
        )
    return found


def resolve_image(source: Path, name: str | None) -> Path:
    """The image file that a document names, whether it exists or not.

    The name is relative to the document. File URLs, percent-encoding, Windows separators and blanks
    around it are tolerated where the literal name does not exist, and so are names relative to the
    root of a METS workspace: those are looked up beside the document and from the folder above.

    Raises:
        SourceProblem: the document names no image.
    """
    if name is None or not name.strip():
        raise SourceProblem(SkipReason.MISSING_IMAGE, f"{source} names no image file")
    candidates = list(_image_candidates(source.parent, name))
    return next((path for path in candidates if _is_file(path)), candidates[0])


def _image_candidates(folder: Path, name: str) -> Iterator[Path]:
    stripped = name.strip()
    yield folder / stripped
    yield folder / name
    if stripped.startswith("file:"):
        yield folder / unquote(urlsplit(stripped).path)
    plain = unquote(stripped).replace("\\", "/")
    yield folder / plain
    yield folder / plain.rsplit("/", 1)[-1]
    yield folder.parent / plain


def _is_file(path: Path) -> bool:
    # A name from outside may hold a NUL or be too long for the system to ask about.
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _syntax_problem(data: bytes, source: Path, error: etree.XMLSyntaxError) -> str:
    beginning = data[:64].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    if not beginning.startswith(b"<"):
        kinds = "use -f path for line images and, in training and tests, -f binary for data sets"
        return f"{source} is not an XML file; {kinds}"
    return f"{source} is not well-formed XML ({error.msg}); correct it or leave it out"


def _refuse_entities(data: bytes, source: Path) -> None:
    """Stop at the first entity declaration, before a parser that expands entities sees the document.

    lxml still expands entities in attribute values with ``resolve_entities=False``; expat reads only
    the prolog here.
    """
    parser = expat.ParserCreate()

    def declared(name: str, *_: object) -> None:
        raise SourceProblem(
            SkipReason.UNSAFE_XML,
            f"{source} declares the entity {name[:40]!r}; remove its document type declaration",
        )

    def root_reached(*_: object) -> None:
        raise _RootReached

    parser.EntityDeclHandler = declared
    parser.StartElementHandler = root_reached
    try:
        parser.Parse(data, True)
    except (_RootReached, expat.ExpatError, ValueError, LookupError):
        # A malformed prolog or unknown encoding is reported by the parser proper, with its line number.
        return
