"""The file of an index: its columns, writing it whole, mapping it and making sure of its form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from distrib.errors import InputError, RunError
from distrib.files import write_error, written_whole
from distrib.shards.mapping import MappedFile

INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("image_offset", pa.int64()),
        pa.field("image_bytes", pa.int32()),
        pa.field("image_crc", pa.uint32()),
        pa.field("text", pa.string()),
        pa.field("base_dir", pa.string()),
        pa.field("source", pa.string()),
        pa.field("line_id", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("columns", pa.int32()),
        pa.field("key", pa.uint64()),
        pa.field("page_key", pa.uint64()),
        pa.field("split", pa.uint8()),
    ]
)
"""``image_offset`` and ``image_bytes`` are where the image lies in the shard file (offset -1: nowhere),
``image_crc`` is its zlib.crc32. ``text`` is raw. ``width`` and ``height`` are of the stored image in pixels,
0 where it has no readable header. ``columns`` are those of the line as network input without padding, at the
data set's height, 0 where not known exactly. ``page_key`` is 0 where the page is not known, ``split`` one of
``SPLIT_CODES`` or 0. Numbers are never null."""

INDEX_VERSION: Final = 1

_VERSION_KEY: Final = b"ketos_index"
_FACTS_KEY: Final = b"facts"
_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 4096


def numpy_type(name: str) -> np.dtype[Any]:
    """The numpy type of a numeric column of ``INDEX_SCHEMA``."""
    # Not to_pandas_dtype: before version 17 of pyarrow it wants pandas installed.
    return np.dtype(str(INDEX_SCHEMA.field(name).type))


class IndexPart:
    """Record batches of ``INDEX_SCHEMA``, one a shard, that lie in one mapped file or in memory.

    Pickled it is the path and a digest of samples of the file, or the bytes where it is in memory.
    """

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        *,
        facts: Mapping[str, Any] | None = None,
        path: Path | None = None,
        mapping: MappedFile | None = None,
    ) -> None:
        self.batches = tuple(batches)
        self.facts: Mapping[str, Any] = facts or {}
        """What was written beside the lines, a JSON object."""
        self.path = path
        self._mapping = mapping

    def __reduce__(self) -> tuple[Any, ...]:
        # What came from a cache may have been deleted there in the meantime; the mapping is still good.
        if self.path is not None and self.path.exists():
            return _reopen, (self.path, self.fingerprint)
        return _from_bytes, (_to_bytes(self.batches),)

    @cached_property
    def fingerprint(self) -> str:
        """Of a mapped file: its size and samples from all over it. Equal for copies of one file."""
        assert self._mapping is not None
        size = len(self._mapping)
        digest = blake2b(size.to_bytes(8, "little"), digest_size=16)
        last = max(size - _SAMPLE_BYTES, 0)
        for number in range(_SAMPLES):
            start = last * number // (_SAMPLES - 1)
            digest.update(self._mapping.buffer.slice(start, min(_SAMPLE_BYTES, size)))
        self.release()
        return digest.hexdigest()

    def column(self, batch: pa.RecordBatch, name: str) -> pa.StringArray:
        """A text column whose every text lies inside the file. Raises InputError where one does not."""
        column = batch.column(name)
        try:
            column.validate(full=True)  # an offset that points elsewhere would crash the process
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path) from error
        return column

    def release(self) -> None:
        """Give back the memory of the pages touched so far, where they are mapped."""
        if self._mapping is not None:
            self._mapping.release()


def write_part(path: Path, batches: Iterable[pa.RecordBatch], facts: Mapping[str, Any] | None = None) -> None:
    """Write record batches of ``INDEX_SCHEMA``, one a shard, to a file that appears when it is whole.

    Raises InputError or RunError where it cannot be written.
    """
    metadata = {_VERSION_KEY: str(INDEX_VERSION), _FACTS_KEY: json.dumps(dict(facts or {}))}
    try:
        with (
            written_whole(path) as file,
            pa.ipc.new_file(file, INDEX_SCHEMA.with_metadata(metadata)) as writer,
        ):
            for batch in batches:
                writer.write_batch(batch)
    except OSError as error:
        raise write_error(path, error) from error


def map_part(path: Path) -> IndexPart:
    """Map the file of an index. Its numbers are safe to read then, its texts through ``column``.

    Raises InputError where it is missing, damaged, or of another version.
    """
    try:
        mapping = MappedFile(path)
        with pa.ipc.open_file(pa.BufferReader(mapping.buffer)) as reader:
            facts = _check_schema(reader.schema, path)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            _check_numbers(batch)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; copy or compile the data set again.") from error
    except (pa.ArrowException, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _damaged(path) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); check its name and permissions."
        ) from error
    mapping.release()
    return IndexPart(batches, facts=facts, path=path, mapping=mapping)


def _check_schema(schema: pa.Schema, path: Path) -> Mapping[str, Any]:
    metadata = schema.metadata or {}
    if _VERSION_KEY not in metadata:
        raise InputError(f"{path} is no index of a data set; copy or compile the data set again.")
    if metadata[_VERSION_KEY] != str(INDEX_VERSION).encode():
        raise InputError(f"{path} is an index of another version of this program; compile it again.")
    if not schema.equals(INDEX_SCHEMA, check_metadata=False):
        raise ValueError("its columns are others")
    facts = json.loads(metadata.get(_FACTS_KEY, b"{}"))
    if not isinstance(facts, dict):
        raise ValueError("its facts are no JSON object")
    return facts


def _check_numbers(batch: pa.RecordBatch) -> None:
    """Raises ArrowInvalid where a buffer is too short for its rows, ValueError for null numbers."""
    batch.validate()
    for field, column in zip(INDEX_SCHEMA, batch.columns, strict=True):
        if field.type != pa.string() and column.null_count:
            raise ValueError("it lacks numbers")


def _damaged(path: Path | None) -> InputError:
    return InputError(f"{path or 'The index'} is damaged; copy or compile the data set again.")


def _reopen(path: Path, fingerprint: str) -> IndexPart:
    part = map_part(path)
    if part.fingerprint != fingerprint:
        raise RunError(f"{path} has been replaced since it was opened; start again with the new data set.")
    return part


def _to_bytes(batches: Sequence[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, INDEX_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _from_bytes(content: bytes) -> IndexPart:
    with pa.ipc.open_stream(content) as reader:
        return IndexPart(list(reader))
