"""Ground truth files to packed lines: the part of compiling that worker processes do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

from distrib.errors import KetosError, RunError
from distrib.ground_truth.reader import read_line_images
from distrib.ground_truth.records import FormatType, LineImage, LineType, Skip, SkipReason
from distrib.shards.arrow_schema import ImageMode
from distrib.shards.arrow_writer import PackedLine
from distrib.shards.png import encode_png

PAIRS_A_TASK: Final = 16
"""Line pairs a task: one takes milliseconds, about as long as handing it to a process and back."""


class LineReader(Protocol):
    """Reads a ground truth file; must be picklable, that is a function of a module."""

    def __call__(
        self, source: Path, *, format_type: FormatType, linetype: LineType | None, legacy_polygons: bool
    ) -> Iterator[LineImage | Skip]: ...


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """A few sources to pack, and how."""

    sources: Sequence[Path]
    format_type: FormatType
    linetype: LineType | None = None
    legacy_polygons: bool = False
    skip_empty_lines: bool = True
    read: LineReader = read_line_images


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedPage:
    """What one source gave: lines in document order, and what was left out."""

    source: Path
    lines: tuple[PackedLine, ...]
    skips: tuple[Skip, ...]


def pack(task: PackTask) -> list[PackedPage]:
    """Read, extract and encode the lines of the sources of ``task``, in their order.

    Raises:
        RunError: a page does not fit in memory.
    """
    return [_pack_page(source, task) for source in task.sources]


def _pack_page(source: Path, task: PackTask) -> PackedPage:
    lines: list[PackedLine] = []
    skips: list[Skip] = []
    try:
        for item in task.read(
            source,
            format_type=task.format_type,
            linetype=task.linetype,
            legacy_polygons=task.legacy_polygons,
        ):
            packed = _pack_line(item, task) if isinstance(item, LineImage) else item
            if isinstance(packed, PackedLine):
                lines.append(packed)
            else:
                skips.append(packed)
    except KetosError:
        raise
    except MemoryError as error:
        raise RunError(f"{source} does not fit in memory; give more, or use fewer --workers.") from error
    except Exception as error:
        # A boundary: hours of compiling must not be lost to one page that trips over a defect. It does
        # not hide, being counted and reported like any other page that cannot be used.
        detail = f"{source} stopped at an unexpected {type(error).__name__}: {error}"
        skips.append(Skip(source=source, line_id=None, reason=SkipReason.EXTRACTION_FAILED, detail=detail))
    return PackedPage(source=source, lines=tuple(lines), skips=tuple(skips))


def _pack_line(line: LineImage, task: PackTask) -> PackedLine | Skip:
    problem = _problem(line, task)
    if problem is not None:
        reason, detail = problem
        return Skip(source=line.source, line_id=line.line_id, reason=reason, detail=detail)
    return PackedLine(
        text=line.text,
        png=encode_png(line.image),
        source=line.source.name,
        line_id=line.line_id,
        width=line.image.width,
        height=line.image.height,
        mode=cast(ImageMode, line.image.mode),
        languages=line.languages,
        split=line.split,
        base_dir=line.base_dir,
    )


def _problem(line: LineImage, task: PackTask) -> tuple[SkipReason, str] | None:
    where = f"line {line.line_id} of {line.source}"
    if task.skip_empty_lines and not line.text.strip():
        return SkipReason.EMPTY_TEXT, f"{where} has no text"
    if 0 in line.image.size:
        return SkipReason.EXTRACTION_FAILED, f"{where} has an image without pixels"
    try:
        line.text.encode()
    except UnicodeEncodeError as error:
        code_point = ord(line.text[error.start])
        return SkipReason.UNREADABLE_TEXT, f"{where} has text with the lone surrogate U+{code_point:04X}"
    return None
