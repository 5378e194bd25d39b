"""Ground truth files to packed lines: the part of compiling that worker processes do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from distrib.errors import KetosError, RunError
from distrib.ground_truth.network_input import normalized_line
from distrib.ground_truth.reader import read_line_images
from distrib.ground_truth.records import FormatType, LineImage, LineType, Skip, SkipReason
from distrib.shards.arrow_schema import ImageMode
from distrib.shards.compiling.arrow_writer import PackedLine
from distrib.shards.compiling.source_digest import digest_key, source_digest
from distrib.shards.png import encode_png

PAIRS_A_TASK: Final = 16
"""Line pairs a task: one takes milliseconds, about as long as handing it to a process and back."""

MAX_LINE_PIXELS: Final = 100_000_000
"""Of a normalised line; beyond it a line a few pixels high would become an image of gigabytes."""


class LineReader(Protocol):
    """Reads a ground truth file; must be picklable, that is a function of a module."""

    def __call__(
        self,
        source: Path,
        *,
        format_type: FormatType,
        linetype: LineType | None,
        legacy_polygons: bool,
        textless: bool,
    ) -> Iterator[LineImage | Skip]: ...


@dataclass(frozen=True, kw_only=True)
class PackTask:
    """A few sources to pack, and how.

    ``line_type`` is the one that the data set records, ``height`` that of the network input in pixels.
    ``digest_settings`` asks for digests of the sources. A source is not read if the key of its digest is in
    the file ``known``, sorted uint64.
    """

    sources: Sequence[Path]
    format_type: FormatType
    line_type: LineType
    linetype: LineType | None = None
    legacy_polygons: bool = False
    skip_empty_lines: bool = True
    height: int = 120
    normalized: bool = False
    digest_settings: bytes | None = None
    known: Path | None = None
    read: LineReader = read_line_images


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedPage:
    """What one source gave: lines in document order, and what was left out.

    A source that is ``known`` by its ``digest`` was not read and gave neither.
    """

    source: Path
    lines: tuple[PackedLine, ...] = ()
    skips: tuple[Skip, ...] = ()
    digest: bytes = b""
    known: bool = False


def pack(task: PackTask) -> list[PackedPage]:
    """Read, extract and encode the lines of the sources of ``task``, in their order.

    Raises:
        RunError: a page does not fit in memory.
    """
    return [_pack_source(source, task) for source in task.sources]


def digests(task: PackTask) -> list[bytes]:
    """The digests of the sources of ``task``, in their order; nothing else is done with them."""
    return [_digest(source, task) for source in task.sources]


def _pack_source(source: Path, task: PackTask) -> PackedPage:
    digest = _digest(source, task)
    if task.known is not None and _is_known(digest_key(digest), task.known):
        return PackedPage(source=source, digest=digest, known=True)
    return _pack_page(source, digest, task)


def _is_known(key: int, known: Path) -> bool:
    keys = _mapped_keys(known)
    row = int(np.searchsorted(keys, np.uint64(key)))
    return row < len(keys) and int(keys[row]) == key


@lru_cache(maxsize=1)
def _mapped_keys(path: Path) -> npt.NDArray[np.uint64]:
    return np.memmap(path, dtype=np.uint64, mode="r")


def _digest(source: Path, task: PackTask) -> bytes:
    if task.digest_settings is None:
        return b""
    return source_digest(
        source, format_type=task.format_type, linetype=task.linetype, settings=task.digest_settings
    )


def _pack_page(source: Path, digest: bytes, task: PackTask) -> PackedPage:
    lines: list[PackedLine] = []
    skips: list[Skip] = []
    try:
        for item in task.read(
            source,
            format_type=task.format_type,
            linetype=task.linetype,
            legacy_polygons=task.legacy_polygons,
            textless=not task.skip_empty_lines,
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
    return PackedPage(source=source, lines=tuple(lines), skips=tuple(skips), digest=digest)


def _pack_line(line: LineImage, task: PackTask) -> PackedLine | Skip:
    problem = _problem(line, task)
    if problem is not None:
        reason, detail = problem
        return Skip(source=line.source, line_id=line.line_id, reason=reason, detail=detail)
    image = line.image
    if task.normalized:
        image = normalized_line(image, height=task.height, centerline=task.line_type == "bbox")
    return PackedLine(
        text=line.text,
        png=encode_png(image),
        source=line.source.name,
        line_id=line.line_id,
        width=image.width,
        height=image.height,
        mode=cast(ImageMode, image.mode),
        languages=line.languages,
        split=line.split,
        base_dir=line.base_dir,
        columns=_columns(image, task),
        source_mode=cast(ImageMode, line.image.mode),
    )


def _columns(image: Image.Image, task: PackTask) -> int:
    """The width of the line as network input; 0 where only straightening it would tell."""
    if task.normalized:
        return image.width
    return 0 if task.line_type == "bbox" else _scaled_width(image, task)


def _scaled_width(image: Image.Image, task: PackTask) -> int:
    # A column is 32 bits wide, which a line one pixel high can exceed.
    return min(max(int(image.width * task.height / image.height), 1), (1 << 31) - 1)


def _problem(line: LineImage, task: PackTask) -> tuple[SkipReason, str] | None:
    where = f"line {line.line_id} of {line.source}"
    if task.skip_empty_lines and not line.text.strip():
        return SkipReason.EMPTY_TEXT, f"{where} has no text"
    if 0 in line.image.size:
        return SkipReason.EXTRACTION_FAILED, f"{where} has an image without pixels"
    if task.normalized and _scaled_width(line.image, task) * task.height > MAX_LINE_PIXELS:
        width, height = line.image.size
        return SkipReason.IMAGE_TOO_LARGE, (
            f"{where} is {width} × {height} pixels, more than {MAX_LINE_PIXELS} pixels when scaled to "
            f"{task.height} pixels high"
        )
    try:
        line.text.encode()
    except UnicodeEncodeError as error:
        code_point = ord(line.text[error.start])
        return SkipReason.UNREADABLE_TEXT, f"{where} has text with the lone surrogate U+{code_point:04X}"
    return None
