"""The layout of an Arrow data set: its columns, its metadata, and the stable keys of lines and pages.

An Arrow IPC *file* with one record per line. kraken 7 reads ``lines`` and the three split columns and
looks columns up by name, so the columns after them are ours: what an index needs, readable without
touching an image.

=============  =============================================================  =========
column         content                                                        kraken
=============  =============================================================  =========
``lines``      struct of ``text`` (raw), ``im`` (PNG) and ``language`` list   yes
``train`` ...  booleans ``train``, ``validation``, ``test``                   yes
``source``     name of the ground truth file, without its folder              no
``line_id``    id of the line in that file                                    no
``base_dir``   text direction the file states: ``L``, ``R`` or null           no
``width``      of the image in pixels (``height`` likewise)                   no
``key``        64 bit hash of source name, line id and raw text               no
``page_key``   64 bit hash of the source name                                 no
``image_crc``  CRC-32 (zlib's) of the PNG                                     no
``columns``    of the line as network input, unpadded; 0 where not known      no
=============  =============================================================  =========

The schema metadata holds two JSON values: ``lines``, which kraken reads, and ``ketos_distrib``, ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Literal

import pyarrow as pa

from distrib.ground_truth.records import LineType, Split

ImageMode = Literal["1", "L", "RGB"]
"""Bitonal, grey, colour: in this order a data set's mode is the last one that occurs in it."""

IMAGE_MODES: Final[tuple[ImageMode, ...]] = ("1", "L", "RGB")
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")

LINES_KEY: Final = b"lines"
OWN_KEY: Final = b"ketos_distrib"
OWN_VERSION: Final = 1

DATASET_TYPES: Final[Mapping[LineType, str]] = {
    "bbox": "kraken_recognition_bbox",
    "baselines": "kraken_recognition_baseline",
}

LINES_TYPE: Final = pa.struct(
    [("text", pa.string()), ("im", pa.binary()), ("language", pa.list_(pa.string()))],
)
MAX_HEIGHT: Final = 1 << 14
"""Pixels; a data set that claims to be for higher network input is damaged."""

MAGIC: Final = b"ARROW1"
"""What an Arrow file begins with."""

KRAKEN_FIELDS: Final = (
    pa.field("lines", LINES_TYPE),
    pa.field("train", pa.bool_()),
    pa.field("validation", pa.bool_()),
    pa.field("test", pa.bool_()),
)
OWN_FIELDS: Final = (
    pa.field("source", pa.string()),
    pa.field("line_id", pa.string()),
    pa.field("base_dir", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("key", pa.uint64()),
    pa.field("page_key", pa.uint64()),
    pa.field("image_crc", pa.uint32()),
    pa.field("columns", pa.int32()),
)
SCHEMA: Final = pa.schema([*KRAKEN_FIELDS, *OWN_FIELDS])


class MetadataProblem(ValueError):
    """The schema metadata is not that of a line data set; the message says what is wrong with it."""


def line_key(source_name: str, line_id: str, text: str) -> int:
    """Stable 64 bit key of a line: the same on every machine and in every run.

    ``source_name`` is the file's name without its folder, so that moving a collection changes nothing;
    equal names in two folders with the same line id and text share a key. ``text`` is raw.
    """
    content = "\0".join((source_name, line_id, text))
    return _hash64(content.encode("utf-8", "surrogatepass"))


def page_key(source_name: str) -> int:
    """Stable 64 bit key of the page a line is on, from the name of its ground truth file."""
    return _hash64(source_name.encode("utf-8", "surrogatepass"))


def content_key(text: bytes, image: bytes | memoryview) -> int:
    """64 bit key of a line in a data set that names no sources, from UTF-8 text and PNG."""
    digest = blake2b(len(text).to_bytes(8, "little") + text, digest_size=8)
    digest.update(image)
    return int.from_bytes(digest.digest(), "little")


def _hash64(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def largest_mode(modes: set[ImageMode]) -> ImageMode:
    """The mode every image in ``modes`` can be widened to; grey where there are none."""
    return max(modes, key=IMAGE_MODES.index, default="L")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of lines."""

    all: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """What a data set says about itself as a whole.

    ``height`` is the network input height in pixels for which the column ``columns`` was computed, 0 where
    it was not. With ``normalized`` the images are network input of that height already, grey and without
    padding; ``im_mode`` is then the mode of these images. ``source_mode`` is the mode of the line images
    as they were cut (None: the same as ``im_mode``).
    """

    line_type: LineType
    alphabet: Mapping[str, int]
    im_mode: ImageMode = "L"
    legacy_polygons: bool = False
    languages: Mapping[str, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    normalized: bool = False
    height: int = 0
    source_mode: ImageMode | None = None

    def to_schema(self, schema: pa.Schema = SCHEMA) -> pa.Schema:
        """``schema`` with this metadata."""
        lines = {
            "type": DATASET_TYPES[self.line_type],
            "alphabet": dict(self.alphabet),
            "text_type": "raw",
            "image_type": "raw",
            # kraken's names: it always writes these three, whichever splits have lines.
            "splits": ["train", "eval", "test"],
            "im_mode": self.im_mode,
            "legacy_polygons": self.legacy_polygons,
            "languages": dict(self.languages),
            "counts": {
                "all": self.counts.all,
                "train": self.counts.train,
                "validation": self.counts.validation,
                "test": self.counts.test,
            },
        }
        own = {
            "version": OWN_VERSION,
            "normalized": self.normalized,
            "height": self.height,
            "source_mode": self.source_mode or self.im_mode,
        }
        return schema.with_metadata(
            {LINES_KEY: json.dumps(lines).encode(), OWN_KEY: json.dumps(own).encode()}
        )

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> DatasetMetadata:
        """Read the metadata of a data set of ours or kraken's.

        Raises:
            MetadataProblem: there is none, or it describes something other than text lines.
        """
        raw = _json_object(schema, LINES_KEY)
        if not raw:
            raise MetadataProblem("its metadata does not describe text lines")
        types = {name: line_type for line_type, name in DATASET_TYPES.items()}
        kind = raw.get("type")
        if not isinstance(kind, str) or kind not in types:
            raise MetadataProblem(f"it is a data set of type {kind!r}, not of text lines for recognition")
        mode = _mode(raw.get("im_mode", "L"))
        own = _json_object(schema, OWN_KEY)
        normalized, height = _normalization(own)
        return cls(
            line_type=types[kind],
            alphabet=_counter(raw.get("alphabet"), "alphabet"),
            im_mode=mode,
            legacy_polygons=bool(raw.get("legacy_polygons", False)),
            languages=_counter(raw.get("languages"), "languages"),
            counts=Counts(**_known(_counter(raw.get("counts"), "counts"), ("all", *SPLITS))),
            normalized=normalized,
            height=height,
            source_mode=_mode(own.get("source_mode") or mode),
        )


def _mode(name: object) -> ImageMode:
    if name not in IMAGE_MODES:
        raise MetadataProblem(f"its metadata gives an unknown image mode {name!r}")
    return name


def _normalization(own: Mapping[str, Any]) -> tuple[bool, int]:
    """Whether the images are network input already, and of which height in pixels."""
    normalized, height = own.get("normalized", False), own.get("height", 0)
    if type(normalized) is not bool or type(height) is not int or not 0 <= height <= MAX_HEIGHT:
        raise MetadataProblem("its record of the line height is damaged")
    if normalized and not height:
        raise MetadataProblem("it holds normalised lines but does not say how high they are")
    return normalized, height


def _json_object(schema: pa.Schema, key: bytes) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(key)
    if raw is None:
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MetadataProblem(f"its metadata {key.decode()!r} is not valid JSON") from error
    if not isinstance(value, dict):
        raise MetadataProblem(f"its metadata {key.decode()!r} is not a JSON object")
    return value


def _counter(value: object, name: str) -> Counter[str]:
    if value is None:
        return Counter()
    if not isinstance(value, dict) or not all(type(count) is int for count in value.values()):
        raise MetadataProblem(f"its metadata {name!r} does not hold counts")
    return Counter(value)


def _known(counts: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    return {name: counts[name] for name in names if name in counts}
