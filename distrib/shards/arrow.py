"""Reading Arrow data sets, ours and kraken's: memory-mapped, a record at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from distrib.errors import InputError, RunError
from distrib.ground_truth.records import BaseDirection, LineType, Split
from distrib.shards.arrow_schema import (
    KRAKEN_FIELDS,
    LINES_TYPE,
    MAGIC,
    OWN_FIELDS,
    SPLITS,
    Counts,
    DatasetMetadata,
    ImageMode,
    MetadataProblem,
    content_key,
)
from distrib.shards.png import decode_png, png_sizes

UNTAGGED: Final = 0
SPLIT_CODES: Final[Mapping[Split, int]] = {split: code for code, split in enumerate(SPLITS, start=1)}
"""What ``SampleIndex.splits`` holds; ``UNTAGGED`` for lines that belong to no split."""

_INDEX_COLUMNS: Final = ("width", "height", "key")
_CACHED_BATCHES: Final = 64


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a data set. ``buffer`` is its PNG inside the mapped file; nothing is copied until asked.

    ``source``, ``line_id`` and ``base_dir`` are None where the data set does not say.
    """

    text: str
    buffer: pa.Buffer
    languages: tuple[str, ...]
    base_dir: BaseDirection | None
    source: str | None
    line_id: str | None
    split: Split | None

    @property
    def png(self) -> bytes:
        """A copy of the image as stored."""
        return cast(bytes, self.buffer.to_pybytes())

    def image(self) -> Image.Image:
        """The decoded image, mode ``1``, ``L`` or ``RGB``. Raises what ``decode_png`` raises."""
        return decode_png(memoryview(self.buffer))


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """What planning needs to know of N lines, without their images.

    ``widths`` and ``heights`` are int32 (N,) in pixels of the stored image, 0 where it has no PNG header.
    ``keys`` uint64 (N,) are stable across machines and runs. ``page_keys`` uint64 (N,) are equal for
    lines of one page; None where the data set does not name pages. ``splits`` uint8 (N,): ``SPLIT_CODES``.
    """

    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    keys: npt.NDArray[np.uint64]
    page_keys: npt.NDArray[np.uint64] | None
    splits: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.widths)


class ArrowDataset:
    """An Arrow data set of text lines, as compiled by us or by kraken.

    The file is mapped, never read as a whole; ``record`` costs the same anywhere in it. Pickled it is a
    path and a fingerprint: a worker process opens the file again and refuses one that has changed.

    Raises:
        InputError: the file is missing, cut short, damaged or no data set of text lines.
    """

    path: Path
    line_type: LineType
    alphabet: Mapping[str, int]
    im_mode: ImageMode
    legacy_polygons: bool
    counts: Counts
    """As the metadata gives them; ``len`` counts the lines that are really there."""
    fingerprint: str
    """Changes when the file's size, metadata or layout does."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._reader = _open(self.path, mapped=True)
        schema = self._reader.schema
        try:
            metadata = DatasetMetadata.from_schema(schema)
            _check_columns(schema)
        except MetadataProblem as error:
            raise InputError(f"{self.path}: {error}; make a data set with `ketos compile`.") from error
        except UnicodeDecodeError as error:  # pyarrow decodes names of columns only when they are asked for
            raise InputError(f"{self.path} is damaged; copy or compile it again.") from error
        self.line_type = metadata.line_type
        self.alphabet = metadata.alphabet
        self.im_mode = metadata.im_mode
        self.legacy_polygons = metadata.legacy_polygons
        self.counts = metadata.counts
        self.fingerprint = _fingerprint(self.path, schema)
        self._columns = frozenset(
            field.name for field in OWN_FIELDS if _type_of(schema, field.name) == field.type
        )
        self._starts = self._batch_starts(metadata)
        if not len(self):
            raise InputError(f"{self.path} has no lines; compile it again from ground truth with text.")
        self._batch = lru_cache(maxsize=_CACHED_BATCHES)(self._load_batch)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.fingerprint)

    def __len__(self) -> int:
        """Number of lines."""
        return int(self._starts[-1])

    def record(self, i: int) -> Record:
        """Line ``i``, 0 <= i < len. Raises IndexError, and InputError where the file is damaged."""
        if not 0 <= i < len(self):
            raise IndexError(f"line {i} of a data set of {len(self)} lines")
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        batch, row = self._batch(number), i - int(self._starts[number])
        lines = batch.column("lines")
        image = lines.field("im")[row].as_buffer()
        return Record(
            text=lines.field("text")[row].as_py() or "",
            buffer=pa.py_buffer(b"") if image is None else image,
            languages=tuple(lines.field("language")[row].as_py() or ()),
            base_dir=cast("BaseDirection | None", self._optional(batch, "base_dir", row)),
            source=self._optional(batch, "source", row),
            line_id=self._optional(batch, "line_id", row),
            split=next((split for split in SPLITS if batch.column(split)[row].as_py()), None),
        )

    def texts(self) -> Iterator[str]:
        """The raw texts in order, one record batch in memory at a time, images untouched."""
        return (text for text, _ in self.texts_and_directions())

    def texts_and_directions(self) -> Iterator[tuple[str, BaseDirection | None]]:
        """(raw text, direction its ground truth states) of each line in order, as ``texts`` reads them."""
        for number in range(self._reader.num_record_batches):
            batch = self._load_batch(number)
            texts = batch.column("lines").field("text").to_pylist()
            stated = "base_dir" in self._columns
            directions = batch.column("base_dir").to_pylist() if stated else [None] * len(texts)
            yield from ((text or "", direction) for text, direction in zip(texts, directions, strict=True))

    def index(self) -> SampleIndex:
        """Sizes, keys and splits of all lines.

        Reads our own columns where the file has them. Otherwise takes the sizes from PNG headers and
        makes keys from text and image, in one pass over the whole file that holds one batch at a time.
        """
        ours = self._columns.issuperset(_INDEX_COLUMNS)
        # A foreign file is read, not mapped: all of it passes through, and mapped pages would count as ours.
        reader = self._reader if ours else _open(self.path, mapped=False)
        widths, heights = np.zeros((2, len(self)), dtype=np.int32)
        keys = np.zeros(len(self), dtype=np.uint64)
        page_keys = np.zeros(len(self), dtype=np.uint64) if "page_key" in self._columns else None
        splits = np.full(len(self), UNTAGGED, dtype=np.uint8)
        for number in range(reader.num_record_batches):
            batch = self._load_batch(number, reader)
            rows = slice(int(self._starts[number]), int(self._starts[number + 1]))
            if ours:
                widths[rows], heights[rows], keys[rows] = (_numbers(batch, name) for name in _INDEX_COLUMNS)
            else:
                widths[rows], heights[rows], keys[rows] = _measure(batch.column("lines"))
            if page_keys is not None:
                page_keys[rows] = _numbers(batch, "page_key")
            for split, code in SPLIT_CODES.items():
                splits[rows][_numbers(batch, split).astype(bool)] = code
        return SampleIndex(widths=widths, heights=heights, keys=keys, page_keys=page_keys, splits=splits)

    def _optional(self, batch: pa.RecordBatch, name: str, row: int) -> str | None:
        return batch.column(name)[row].as_py() if name in self._columns else None

    def _load_batch(self, number: int, reader: pa.RecordBatchFileReader | None = None) -> pa.RecordBatch:
        batch = self._read_batch(reader or self._reader, number)
        if batch.num_rows != self._starts[number + 1] - self._starts[number]:
            raise self._damage(number)
        return batch

    def _read_batch(self, reader: pa.RecordBatchFileReader, number: int) -> pa.RecordBatch:
        try:
            batch = reader.get_batch(number)
            batch.validate(full=True)  # offsets that point outside the file would crash the process
        except (pa.ArrowException, OSError) as error:
            raise self._damage(number) from error
        return batch

    def _damage(self, number: int) -> InputError:
        return InputError(f"{self.path} is damaged in record batch {number}; copy or compile it again.")

    def _batch_starts(self, metadata: DatasetMetadata) -> npt.NDArray[np.int64]:
        """Index of the first line of each batch, and the number of lines as the last element."""
        runs = np.array(metadata.batch_rows, dtype=np.int64).reshape(-1, 2)
        batches = self._reader.num_record_batches
        if (runs >= 0).all() and len(runs) and runs[:, 1].sum() == batches:
            rows = np.repeat(runs[:, 0], runs[:, 1])
        else:
            rows = np.array(
                [self._read_batch(self._reader, number).num_rows for number in range(batches)], dtype=np.int64
            )
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(rows)])


def _reopen(path: Path, fingerprint: str) -> ArrowDataset:
    dataset = ArrowDataset(path)
    if dataset.fingerprint != fingerprint:
        raise RunError(f"{path} has been replaced since it was opened; start again with the new file.")
    return dataset


def _open(path: Path, *, mapped: bool) -> pa.RecordBatchFileReader:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a data set file (.arrow).")
        with path.open("rb") as file:
            begins_as_arrow = file.read(len(MAGIC)) == MAGIC
        if not begins_as_arrow:
            raise InputError(f"{path} is not an Arrow file; name a data set made with `ketos compile`.")
        source = pa.memory_map(str(path), "r") if mapped else pa.OSFile(str(path), "rb")
        return pa.ipc.open_file(source)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check its name.") from error
    except pa.ArrowException as error:
        raise InputError(f"{path} is cut short or damaged; copy or compile it again.") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); check its name and permissions."
        ) from error


def _check_columns(schema: pa.Schema) -> None:
    """Raises MetadataProblem unless the columns every data set has are there, with their types."""
    for wanted in KRAKEN_FIELDS:
        found = _type_of(schema, wanted.name)
        if found is None:
            raise MetadataProblem(f"it has no column {wanted.name!r}")
        if found != wanted.type and not (wanted.type == LINES_TYPE and _holds_lines(found)):
            raise MetadataProblem(f"its column {wanted.name!r} has type {found} instead of {wanted.type}")


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    position = schema.get_field_index(name)  # -1 too where a name occurs twice
    return None if position < 0 else schema.field(position).type


def _holds_lines(found: pa.DataType) -> bool:
    """Whether a struct has the three fields we read, in whatever order and beside whatever others."""
    if not pa.types.is_struct(found):
        return False
    fields = {found.field(i).name: found.field(i).type for i in range(found.num_fields)}
    return all(fields.get(field.name) == field.type for field in LINES_TYPE)


def _fingerprint(path: Path, schema: pa.Schema) -> str:
    digest = blake2b(str(path.stat().st_size).encode(), digest_size=16)
    for key, value in sorted((schema.metadata or {}).items()):
        digest.update(key + b"\0" + value + b"\0")
    return digest.hexdigest()


def _numbers(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    """A column as numpy, nulls as 0."""
    column = batch.column(name)
    values = column.fill_null(0 if pa.types.is_integer(column.type) else False)
    return cast("npt.NDArray[Any]", values.to_numpy(zero_copy_only=False))


def _measure(
    lines: pa.StructArray,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
    """Widths, heights and content keys of a batch of lines without index columns."""
    images, texts = lines.field("im"), lines.field("text")
    _, offsets_buffer, data_buffer = images.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32).astype(np.int64)
    offsets = offsets[images.offset : images.offset + len(images) + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    widths, heights = png_sizes(data, offsets[:-1], offsets[1:])
    view = data.data
    keys = np.fromiter(
        (
            content_key((text or "").encode(), view[start:end])
            for text, start, end in zip(texts.to_pylist(), offsets[:-1], offsets[1:], strict=True)
        ),
        dtype=np.uint64,
        count=len(images),
    )
    return widths, heights, keys
