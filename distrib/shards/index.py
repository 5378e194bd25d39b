"""The index of a data set: where every line's image lies, its text, and what planning needs of it.

One Arrow record batch a shard, all in one IPC file that is mapped and never read as a whole, or in memory
for small data sets. A line costs a few dozen bytes beside its text; its image is read from the shard by
offset and size, and checked by its CRC-32.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distrib.shards.index_file import INDEX_SCHEMA, INDEX_VERSION, IndexPart, map_part, numpy_type, write_part

__all__ = [
    "INDEX_SCHEMA",
    "INDEX_VERSION",
    "DatasetIndex",
    "IndexEntry",
    "memory_index",
    "open_index",
    "write_index",
]

LINES_PER_CHUNK: Final = 8192

_CACHED_SHARDS: Final = 4096
_ENTRIES_HELD: Final = 8192
"""After so many lines their pages are given back, or by the end of an epoch the whole index is in memory."""

_ENTRY_NUMBERS: Final = (
    "image_offset",
    "image_bytes",
    "image_crc",
    "split",
    "width",
    "height",
    "columns",
)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line: the number of its shard, where its image lies in it, and what else is known.

    ``offset`` and ``size`` in bytes; ``split`` is a code of ``SPLIT_CODES`` or 0; see ``INDEX_SCHEMA``.
    """

    shard: int
    offset: int
    size: int
    crc: int
    text: str
    base_dir: str | None
    source: str | None
    line_id: str | None
    split: int
    width: int
    height: int
    columns: int


class DatasetIndex:
    """The index of N lines in S shards, those of ``parts`` one after the other.

    Pickled it is small: a path where it is mapped. A worker that opens another file there than the one
    that was pickled raises RunError.
    """

    shard_starts: npt.NDArray[np.int64]
    """int64 (S + 1,): number of the first line of each shard, and N at the end."""

    def __init__(self, parts: Sequence[IndexPart]) -> None:
        self._parts = tuple(parts)
        self._batches = [(part, batch) for part in self._parts for batch in part.batches]
        sizes = [batch.num_rows for _, batch in self._batches]
        self.shard_starts = np.zeros(len(sizes) + 1, dtype=np.int64)
        np.cumsum(sizes, out=self.shard_starts[1:])
        self._starts: list[int] = self.shard_starts.tolist()
        self._read = 0
        self._shard = lru_cache(maxsize=_CACHED_SHARDS)(self._open_shard)

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetIndex, (self._parts,)

    def __len__(self) -> int:
        """Number of lines."""
        return self._starts[-1]

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """int64 (S,): lines of each shard."""
        return np.diff(self.shard_starts)

    def column(self, name: str) -> npt.NDArray[Any]:
        """A copy (N,) of a numeric column of ``INDEX_SCHEMA``."""
        out = np.empty(len(self), dtype=numpy_type(name))
        for start, (_, batch) in zip(self._starts, self._batches, strict=False):
            out[start : start + batch.num_rows] = batch.column(name).to_numpy()
        self._release()
        return out

    @cached_property
    def has_page_keys(self) -> bool:
        """Whether the page of every line is known."""
        known = all(batch.column("page_key").to_numpy().all() for _, batch in self._batches)
        self._release()
        return known

    def entry(self, line: int) -> IndexEntry:
        """Line ``line``, 0 <= line < N. Raises IndexError, and InputError where the index is damaged."""
        if not 0 <= line < self._starts[-1]:
            raise IndexError(f"line {line} of a data set of {len(self)} lines")
        self._read += 1
        if self._read % _ENTRIES_HELD == 0:
            self._release()
        shard = bisect_right(self._starts, line) - 1
        return self._shard(shard).entry(shard, line - self._starts[shard])

    def text_chunks(
        self, lines_per_chunk: int = LINES_PER_CHUNK
    ) -> Iterator[tuple[int, list[str], list[str | None]]]:
        """(number of the first line, raw texts, base directions stated) of all lines in order.

        A chunk lies within a shard and has at most ``lines_per_chunk`` lines; no more is held in memory.
        Raises InputError where the index is damaged.
        """
        for first, (part, batch) in zip(self._starts, self._batches, strict=False):
            texts, directions = part.column(batch, "text"), part.column(batch, "base_dir")
            for start in range(0, batch.num_rows, lines_per_chunk):
                chunk = _to_list(texts.slice(start, lines_per_chunk))
                if texts.null_count:
                    chunk = [text or "" for text in chunk]
                yield (
                    first + start,
                    cast("list[str]", chunk),
                    _to_list(directions.slice(start, lines_per_chunk)),
                )
            part.release()

    def _open_shard(self, shard: int) -> _ShardView:
        return _ShardView(*self._batches[shard])

    def _release(self) -> None:
        for part in self._parts:
            part.release()


class _ShardView:
    """The lines of one shard as buffers that give one value in a fraction of a microsecond."""

    def __init__(self, part: IndexPart, batch: pa.RecordBatch) -> None:
        self._numbers = [memoryview(batch.column(name).to_numpy()) for name in _ENTRY_NUMBERS]
        self._texts = _Strings(part.column(batch, "text"))
        self._base_dirs = _Strings(part.column(batch, "base_dir"))
        self._sources = _Strings(part.column(batch, "source"))
        self._line_ids = _Strings(part.column(batch, "line_id"))

    def entry(self, shard: int, row: int) -> IndexEntry:
        offset, size, crc, split, width, height, columns = [numbers[row] for numbers in self._numbers]
        return IndexEntry(
            shard,
            offset,
            size,
            crc,
            self._texts[row] or "",
            self._base_dirs[row],
            self._sources[row],
            self._line_ids[row],
            split,
            width,
            height,
            columns,
        )


class _Strings:
    """A validated column of texts, by row."""

    def __init__(self, column: pa.StringArray) -> None:
        valid, offsets, texts = column.buffers()
        self._first = column.offset
        self._valid = memoryview(valid).cast("B") if column.null_count else None
        ends = memoryview(offsets if len(column) else b"").cast("B")
        self._offsets = ends[4 * self._first : 4 * (self._first + len(column) + 1)].cast("i")
        self._texts = memoryview(texts if texts is not None else b"")

    def __getitem__(self, row: int) -> str | None:
        if self._valid is not None:
            bit = row + self._first
            if not self._valid[bit >> 3] >> (bit & 7) & 1:
                return None
        return str(self._texts[self._offsets[row] : self._offsets[row + 1]], "utf-8")


def _to_list(column: pa.StringArray) -> list[str | None]:
    return cast("list[str | None]", column.to_pylist())


def memory_index(batches: Sequence[pa.RecordBatch]) -> DatasetIndex:
    """An index in memory of record batches of ``INDEX_SCHEMA``, one a shard."""
    return DatasetIndex([IndexPart(batches)])


def write_index(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an index, one record batch of ``INDEX_SCHEMA`` a shard, that appears when it is whole.

    The batches are taken one at a time.

    Raises:
        InputError, RunError: the file cannot be written.
    """
    write_part(path, batches)


def open_index(path: Path) -> DatasetIndex:
    """Map an index.

    Raises:
        InputError: it is missing, damaged, or of another version.
    """
    return DatasetIndex([map_part(path)])
