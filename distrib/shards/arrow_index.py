"""The index of an Arrow data set: from its own columns, or for a foreign file in one pass over its images."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distrib.errors import InputError
from distrib.shards.arrow import SPLIT_CODES, UNTAGGED, ArrowShard, open_arrow
from distrib.shards.image_facts import read_image_facts
from distrib.shards.index_file import INDEX_SCHEMA, numpy_type

_STORED: Final = frozenset(("width", "height", "key", "image_crc"))
"""Columns that spare reading the images."""

_TEXT_COLUMNS: Final = ("base_dir", "source", "line_id")
_RELEASE_EVERY: Final = 32
"""Record batches; a page or two is touched of each, and the kernel maps its neighbours along with it."""

Columns = dict[str, list[Any]]


def index_arrow(path: Path) -> pa.RecordBatch:
    """The index of an Arrow data set of ours or kraken's, a record batch of ``INDEX_SCHEMA``.

    Our own file's images are not touched; of another's all are read once, a few MiB at a time.

    Raises:
        InputError: the file is no data set of text lines, damaged, or compressed.
    """
    return index_opened(open_arrow(path))


def index_opened(shard: ArrowShard) -> pa.RecordBatch:
    """``index_arrow`` of a file that is open already."""
    columns: Columns = {field.name: [] for field in INDEX_SCHEMA}
    try:
        with ExitStack() as stack:
            file = None if shard.own_columns >= _STORED else stack.enter_context(shard.path.open("rb"))
            for number, batch in enumerate(shard.batches()):
                _add_batch(columns, shard, batch, file)
                if number % _RELEASE_EVERY == 0:
                    shard.mapping.release()
        return _join(columns)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{shard.path} has more text than one index can hold; compile it to a folder of shards "
            "with --shard-format."
        ) from error
    except OSError as error:
        raise InputError(
            f"{shard.path} could not be read ({error.strerror or error}); check its disk."
        ) from error
    finally:
        shard.mapping.release()


def _add_batch(columns: Columns, shard: ArrowShard, batch: pa.RecordBatch, file: BinaryIO | None) -> None:
    lines, rows, own = batch.column("lines"), batch.num_rows, shard.own_columns
    offsets, sizes = _places(shard, lines.field("im"))
    values: dict[str, Any] = {"image_offset": offsets, "image_bytes": sizes, "split": _splits(batch)}
    values["text"] = lines.field("text")
    for name in _TEXT_COLUMNS:
        values[name] = batch.column(name) if name in own else pa.nulls(rows, pa.string())
    for name in ("width", "height", "columns", "key", "page_key", "image_crc"):
        if name in own:
            values[name] = _numbers(batch, name)
        elif name in ("columns", "page_key"):
            values[name] = np.zeros(rows, dtype=numpy_type(name))
    if file is not None:
        facts = read_image_facts(file, offsets, sizes, lines.field("text").to_pylist())
        values["image_crc"] = facts.crcs
        if not own >= {"width", "height", "key"}:
            values["width"], values["height"], values["key"] = facts.widths, facts.heights, facts.keys
    for name, value in values.items():
        columns[name].append(value)


def _places(shard: ArrowShard, images: pa.BinaryArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Byte offset int64 (N,) in the file and size int32 (N,) of each image of a validated batch."""
    _, offsets_buffer, data = images.buffers()
    if not len(images) or data is None or not data.size:
        return np.zeros(len(images), dtype=np.int64), np.zeros(len(images), dtype=np.int32)
    base = shard.mapping.position(data)
    if base is None:
        raise InputError(
            f"{shard.path} is compressed, so no line can be read by itself; compile it again, or rewrite it "
            "without compression."
        )
    ends = np.frombuffer(offsets_buffer, dtype=np.int32, count=images.offset + len(images) + 1)
    ends = ends[images.offset :].astype(np.int64)
    sizes = np.diff(ends).astype(np.int32)
    if images.null_count:
        sizes[np.asarray(images.is_null())] = 0
    return np.add(ends[:-1], base, dtype=np.int64), sizes


def _splits(batch: pa.RecordBatch) -> npt.NDArray[np.uint8]:
    codes = np.full(batch.num_rows, UNTAGGED, dtype=np.uint8)
    for split, code in SPLIT_CODES.items():
        codes[_numbers(batch, split)] = code
    return codes


def _numbers(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    """A column as numpy, nulls as 0; sizes that cannot be are 0 too, like those of unreadable images."""
    column = batch.column(name)
    if column.null_count:
        column = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return np.maximum(values, 0) if pa.types.is_signed_integer(column.type) else values


def _join(columns: Columns) -> pa.RecordBatch:
    """One record batch of what the batches of a file gave; nothing in it refers to the file any more."""
    arrays = []
    for field in INDEX_SCHEMA:
        pieces = columns[field.name]
        if field.type == pa.string():
            # The empty one makes a copy of a single piece, which would keep the file mapped.
            joined = pa.concat_arrays([*pieces, pa.array([], pa.string())])
            if field.name == "text":
                joined = pc.fill_null(joined, "")
            elif field.name == "base_dir":
                known = pc.is_in(joined, value_set=pa.array(["L", "R"]))
                joined = pc.if_else(known, joined, pa.scalar(None, pa.string()))
        else:
            joined = pa.array(np.concatenate([*pieces, np.empty(0, numpy_type(field.name))]))
        arrays.append(joined)
    return pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA)
