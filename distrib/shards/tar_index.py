"""The index of a tar in the WebDataset convention, ours or anybody's.

Of a tar of ours the headers, the texts and ``key.json`` are read; of another's also the images, once.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
from PIL import Image

from distrib.errors import InputError
from distrib.ground_truth.records import LineType
from distrib.shards.arrow import SPLIT_CODES, UNTAGGED
from distrib.shards.arrow_schema import (
    DATASET_TYPES,
    IMAGE_MODES,
    MAX_HEIGHT,
    ImageMode,
    content_key,
    largest_mode,
)
from distrib.shards.index_file import INDEX_SCHEMA
from distrib.shards.png import UNREADABLE_IMAGE
from distrib.shards.tar_samples import Member, Sample, TarSamples

IMAGE_FORMATS: Final[Mapping[str, str]] = {
    "png": "PNG",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "tif": "TIFF",
    "tiff": "TIFF",
    "webp": "WEBP",
}
"""Pillow's names of the formats that images of tars may have, by extension."""

_TEXTS: Final = ("txt", "gt.txt")
_MAX_TEXT_BYTES: Final = 1 << 20
_MAX_IMAGE_BYTES: Final = 1 << 30
_ROWS_HELD: Final = 1 << 15
"""Rows kept as Python values, which take ten times the memory of columns."""

_UINT64: Final = (1 << 64) - 1


class TarProblem(str, Enum):
    """Why samples of a tar give no line; the value goes after "N samples"."""

    NO_IMAGE = "without an image (.png, .jpg, .tif or .webp)"
    NO_TEXT = "without a text (.txt)"
    UNREADABLE_TEXT = "with a text that is not UTF-8 or longer than 1 MiB"
    UNREADABLE_IMAGE = "with an image that cannot be read"
    IMAGE_TOO_LARGE = "with an image of more than 1 GiB"
    REPEATED = "with a member that occurs twice"
    OTHER_TYPE = "of another line type or normalised height than the samples before"


@dataclass(frozen=True, kw_only=True)
class TarFacts:
    """What the samples of a tar have in common; of foreign ones bbox lines, not normalised."""

    line_type: LineType = "bbox"
    im_mode: ImageMode = "L"
    source_mode: ImageMode = "L"
    legacy_polygons: bool = False
    normalized_height: int = 0


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """The index of a tar, a record batch of ``INDEX_SCHEMA``, with its facts and problems in sentences."""

    batch: pa.RecordBatch
    facts: TarFacts
    problems: list[str]


def index_tar(path: Path) -> tuple[pa.RecordBatch, list[str]]:
    """The index of a tar and, in a sentence each, what of it cannot be used and why.

    Raises:
        InputError: the file is missing, no tar, compressed, or fails to be read.
    """
    index = read_tar(path)
    return index.batch, index.problems


def read_tar(path: Path) -> TarIndex:
    """``index_tar`` with what the samples have in common. Raises InputError likewise."""
    samples = TarSamples(path)
    rows = _Rows()
    try:
        with path.open("rb") as file:
            for sample in samples:
                rows.add(sample, file.fileno())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check its name.") from error
    except OSError as error:
        raise InputError(
            f"{path} could not be read ({error.strerror or error}); check its name and its disk."
        ) from error
    try:
        batch = rows.batch()
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{path} has more text than one index can hold; cut it into several tars."
        ) from error
    problems = [
        f"{path} has {count} sample{'s' * (count > 1)} {problem.value}, such as {rows.examples[problem]!r}; "
        "left out."
        for problem, count in rows.problems.items()
    ]
    if samples.problem is not None:
        problems.append(samples.problem)
    return TarIndex(batch=batch, facts=rows.facts(), problems=problems)


class _BadSample(ValueError):
    def __init__(self, problem: TarProblem) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass
class _Rows:
    """The lines found so far, and counts of samples that gave none."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    batches: list[pa.RecordBatch] = field(default_factory=list)
    problems: Counter[TarProblem] = field(default_factory=Counter)
    examples: dict[TarProblem, str] = field(default_factory=dict)
    common: tuple[LineType, int] | None = None
    modes: set[ImageMode] = field(default_factory=set)
    source_modes: set[ImageMode] = field(default_factory=set)
    legacy_polygons: bool = False

    def add(self, sample: Sample, descriptor: int) -> None:
        """Add the line of a sample, or count why it gives none. Raises OSError."""
        try:
            line = _read_line(sample, descriptor)
            self.common = self.common or (line.line_type, line.normalized_height)
            if (line.line_type, line.normalized_height) != self.common:
                raise _BadSample(TarProblem.OTHER_TYPE)
        except _BadSample as bad:
            self.problems[bad.problem] += 1
            self.examples.setdefault(bad.problem, sample.key)
            return
        self.rows.append(line.row)
        if len(self.rows) >= _ROWS_HELD:
            self._pack()
        self.modes.add(line.im_mode)
        self.source_modes.add(line.source_mode)
        self.legacy_polygons |= line.legacy_polygons

    def facts(self) -> TarFacts:
        line_type, normalized_height = self.common or ("bbox", 0)
        return TarFacts(
            line_type=line_type,
            im_mode=largest_mode(self.modes),
            source_mode=largest_mode(self.source_modes),
            legacy_polygons=self.legacy_polygons,
            normalized_height=normalized_height,
        )

    def batch(self) -> pa.RecordBatch:
        self._pack()
        columns = [pa.concat_arrays([batch[name] for batch in self.batches]) for name in INDEX_SCHEMA.names]
        return pa.RecordBatch.from_arrays(columns, schema=INDEX_SCHEMA)

    def _pack(self) -> None:
        self.batches.append(pa.RecordBatch.from_pylist(self.rows, schema=INDEX_SCHEMA))
        self.rows = []


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    row: dict[str, Any]
    im_mode: ImageMode
    source_mode: ImageMode
    line_type: LineType
    normalized_height: int
    legacy_polygons: bool


def _read_line(sample: Sample, descriptor: int) -> _Line:
    """The line of a sample. Raises _BadSample where it has none, and OSError."""
    if sample.repeated:
        raise _BadSample(TarProblem.REPEATED)
    image, image_format = _image_of(sample)
    notes = _notes_of(sample, descriptor)
    text = _text_of(sample, notes, descriptor)
    row: dict[str, Any] = {
        "image_offset": image.offset,
        "image_bytes": image.size,
        "text": text,
        "base_dir": _among(notes.get("base_dir"), ("L", "R")),
        "source": _storable(notes.get("source")),
        # Somebody else's lines are best found again by what their files are called.
        "line_id": _storable(notes.get("line_id")) or _storable(sample.key),
        "columns": 0,
        "page_key": 0,
        "split": SPLIT_CODES.get(cast(Any, _among(notes.get("split"), tuple(SPLIT_CODES))), UNTAGGED),
    }
    mode = _among(notes.get("im_mode"), IMAGE_MODES)
    own = _own_numbers(notes)
    if own is not None and mode is not None:
        row.update(own)
    else:
        facts, mode = _measure(image, image_format, text, descriptor)
        row.update(facts)
    return _Line(
        row=row,
        im_mode=cast(ImageMode, mode),
        source_mode=cast(ImageMode, _among(notes.get("source_mode"), IMAGE_MODES) or mode),
        line_type=cast(LineType, _among(notes.get("line_type"), tuple(DATASET_TYPES)) or "bbox"),
        normalized_height=_integer(notes.get("normalized_height"), MAX_HEIGHT) or 0,
        legacy_polygons=notes.get("legacy_polygons") is True,
    )


def _image_of(sample: Sample) -> tuple[Member, str]:
    """The image and the format that its name gives it; ``line.bin.png`` serves where there is no other."""
    named = {extension.rpartition(".")[2]: member for extension, member in sample.members.items()}
    plain = {
        extension: sample.members[extension] for extension in IMAGE_FORMATS if extension in sample.members
    }
    for extension, image_format in IMAGE_FORMATS.items():
        member = (plain or named).get(extension)
        if member is not None:
            if member.size > _MAX_IMAGE_BYTES:
                raise _BadSample(TarProblem.IMAGE_TOO_LARGE)
            return member, image_format
    raise _BadSample(TarProblem.NO_IMAGE)


def _notes_of(sample: Sample, descriptor: int) -> Mapping[str, Any]:
    """What ``.json`` says; nothing where it is missing or no JSON object, as the line is usable without."""
    member = sample.members.get("json")
    if member is None or member.size > _MAX_TEXT_BYTES:
        return {}
    try:
        notes = json.loads(_read(descriptor, member))
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _text_of(sample: Sample, notes: Mapping[str, Any], descriptor: int) -> str:
    for extension in _TEXTS:
        member = sample.members.get(extension)
        if member is not None:
            if member.size > _MAX_TEXT_BYTES:
                raise _BadSample(TarProblem.UNREADABLE_TEXT)
            try:
                return _read(descriptor, member).decode("utf-8")
            except UnicodeDecodeError:
                raise _BadSample(TarProblem.UNREADABLE_TEXT) from None
    text = notes.get("text")
    if not isinstance(text, str):
        raise _BadSample(TarProblem.NO_TEXT)
    if not _is_storable(text):
        raise _BadSample(TarProblem.UNREADABLE_TEXT)
    return text


def _own_numbers(notes: Mapping[str, Any]) -> dict[str, int] | None:
    """The numbers our own tars hold; None unless all are there, as others use these names too."""
    limits = {"width": 2**31 - 1, "height": 2**31 - 1, "image_crc": 2**32 - 1, "key": _UINT64}
    optional = {"columns": 2**31 - 1, "page_key": _UINT64}
    if notes.get("line_type") not in DATASET_TYPES:
        return None
    numbers = {name: _integer(notes.get(name), limit) for name, limit in limits.items()}
    if any(value is None for value in numbers.values()):
        return None
    rest = {name: _integer(notes.get(name), limit) or 0 for name, limit in optional.items()}
    return {**cast("dict[str, int]", numbers), **rest}


def _measure(
    member: Member, image_format: str, text: str, descriptor: int
) -> tuple[dict[str, int], ImageMode]:
    """Size, checksum, key and mode of an image, from its bytes and header."""
    content = _read(descriptor, member)
    try:
        with Image.open(io.BytesIO(content), formats=(image_format,)) as image:
            (width, height), mode = image.size, image.mode
    except UNREADABLE_IMAGE:
        raise _BadSample(TarProblem.UNREADABLE_IMAGE) from None
    facts = {
        "width": width,
        "height": height,
        "image_crc": zlib.crc32(content),
        "key": content_key(text.encode(), content),
    }
    return facts, mode if mode in IMAGE_MODES else "RGB"


def _read(descriptor: int, member: Member) -> bytes:
    content = os.pread(descriptor, member.size, member.offset)
    while len(content) < member.size:
        more = os.pread(descriptor, member.size - len(content), member.offset + len(content))
        if not more:
            raise OSError("it has become shorter while it was read")
        content += more
    return content


def _integer(value: object, limit: int) -> int | None:
    return value if type(value) is int and 0 <= value <= limit else None


def _among(value: object, allowed: tuple[str, ...]) -> str | None:
    return value if isinstance(value, str) and value in allowed else None


def _storable(value: object) -> str | None:
    """A name as a column can hold it: bytes that are not UTF-8 replaced."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
