"""What ground truth is made of: pages and lines, line images, and reasons for leaving one out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

Point = tuple[float, float]
"""(x, y) in pixels of the page image, origin top left."""

LineType = Literal["baselines", "bbox"]
Split = Literal["train", "validation", "test"]
BaseDirection = Literal["L", "R"]
FormatType = Literal["path", "xml", "alto", "page"]


class SkipReason(str, Enum):
    """Why a source file or a line was left out; the value is what reports and summaries print."""

    NOT_GROUND_TRUTH = "not ground truth"
    MALFORMED_XML = "malformed XML"
    UNSAFE_XML = "unsafe XML"
    WRONG_FORMAT = "wrong format"
    MISSING_FILE = "missing file"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    IMAGE_TOO_LARGE = "image too large"
    MISSING_TEXT_FILE = "missing text file"
    UNREADABLE_TEXT = "unreadable text"
    EMPTY_TEXT = "empty text"
    NO_BASELINE = "no baseline"
    SHORT_BASELINE = "baseline too short"
    NO_POLYGON = "no polygon"
    OUTSIDE_IMAGE = "outside image"
    DEGENERATE_POLYGON = "degenerate polygon"
    EXTRACTION_FAILED = "extraction failed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a page as its ground truth file describes it.

    ``text`` is as transcribed (not normalised). ``baseline`` runs in reading order. For line type
    ``bbox`` the boundary is the four corners of the line's bounding box and the baseline is None.
    ``base_dir`` is the text direction the file states (L, R) or None where it states none.
    """

    id: str
    text: str
    baseline: tuple[Point, ...] | None
    boundary: tuple[Point, ...] | None
    languages: tuple[str, ...] = ()
    split: Split | None = None
    base_dir: BaseDirection | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page: the file it came from, its image, its lines in document order."""

    source: Path
    image: Path
    line_type: LineType
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A source file (``line_id`` None) or a line that was left out, and why, in a sentence."""

    source: Path
    line_id: str | None
    reason: SkipReason
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LineImage:
    """A line ready to be compiled: its text and its image (mode ``1``, ``L`` or ``RGB``)."""

    source: Path
    line_id: str
    text: str
    image: Image.Image
    languages: tuple[str, ...] = ()
    split: Split | None = None
    base_dir: BaseDirection | None = None
