"""The lines of one or more compiled data sets under one numbering."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from distrib.errors import InputError
from distrib.ground_truth.records import BaseDirection
from distrib.shards.arrow import SPLIT_CODES
from distrib.shards.dataset import Dataset, ShardRef, open_dataset
from distrib.shards.index import LINES_PER_CHUNK, IndexEntry
from distrib.shards.remote import is_remote
from distrib.shards.storage import ShardStorage, UnreadableLine
from distrib.shards.stored_image import decode_stored

__all__ = [
    "SPLIT_CODES",
    "LineCollection",
    "Record",
    "SampleIndex",
    "ShardStorage",
    "UnreadableLine",
    "open_collection",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line: its raw text and its image as stored, whose checksum was right.

    ``png`` is a PNG, or in tars of others any of the formats of ``IMAGE_FORMATS``. ``base_dir``, ``source``
    and ``line_id`` are None where the data set does not say. ``normalized_height`` in pixels is 0 for an
    image as it was cut. ``bitonal_source`` is true where all line images of the data set were cut with one
    bit a pixel, however they are stored.
    """

    text: str
    base_dir: BaseDirection | None
    png: bytes
    source: str | None
    line_id: str | None
    normalized_height: int
    bitonal_source: bool

    @property
    def fingerprint(self) -> bytes:
        """16 bytes that are equal for equal images as stored."""
        return blake2b(self.png, digest_size=16).digest()

    def image(self) -> Image.Image:
        """The decoded image, mode ``1``, ``L`` or ``RGB``. Raises one of ``png.UNREADABLE_IMAGE``."""
        return decode_stored(self.png)


class SampleIndex:
    """What planning needs to know of N lines, without their images; each column is read when first asked for.

    ``widths`` and ``heights`` are int32 (N,) in pixels of the stored image, 0 where it has no readable
    header. ``columns`` int32 (N,) are those of the line as network input of its data set's ``height``,
    without padding, 0 where not known exactly. ``keys`` uint64 (N,) are stable across machines and runs.
    ``page_keys`` uint64 (N,) are equal for lines of one page; None where any line's page is not known.
    ``splits`` uint8 (N,): ``SPLIT_CODES``, 0 for none.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._indexes = [dataset.index for dataset in datasets]

    def __len__(self) -> int:
        return sum(map(len, self._indexes))

    @cached_property
    def widths(self) -> npt.NDArray[np.int32]:
        return self._column("width")

    @cached_property
    def heights(self) -> npt.NDArray[np.int32]:
        return self._column("height")

    @cached_property
    def columns(self) -> npt.NDArray[np.int32]:
        return self._column("columns")

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        return self._column("key")

    @cached_property
    def page_keys(self) -> npt.NDArray[np.uint64] | None:
        return self._column("page_key") if all(index.has_page_keys for index in self._indexes) else None

    @cached_property
    def splits(self) -> npt.NDArray[np.uint8]:
        return self._column("split")

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([index.column(name) for index in self._indexes])


class LineCollection:
    """Data sets one after the other; line ``i`` counts through all of them. Images stay where they are."""

    def __init__(self, datasets: Sequence[Dataset], storage: ShardStorage | None = None) -> None:
        if not datasets:
            raise InputError("There is no data set to read lines from.")
        self.datasets = tuple(datasets)
        self.storage = storage or ShardStorage()
        self._starts = [0, *np.cumsum([len(dataset) for dataset in self.datasets]).tolist()]
        self._index: SampleIndex | None = None
        _require_one_type(self.datasets)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the columns read so far, which workers do not need and which grow with the data.
        return LineCollection, (self.datasets, self.storage)

    @property
    def line_type(self) -> str:
        """``baselines`` or ``bbox``, the same for all data sets."""
        return self.datasets[0].line_type

    @property
    def legacy_polygons(self) -> bool:
        """True where any of the data sets was cut with the extractor of kraken < 5."""
        return any(dataset.legacy_polygons for dataset in self.datasets)

    @property
    def bitonal(self) -> bool:
        """True where every line image of every data set was cut with one bit a pixel."""
        return all(dataset.source_mode == "1" for dataset in self.datasets)

    @property
    def remote(self) -> bool:
        """True where any shard lies behind a network."""
        return any(is_remote(shard.address) for shard in self.shards)

    @property
    def problems(self) -> list[str]:
        """Sentences about what of the data sets cannot be used."""
        return [problem for dataset in self.datasets for problem in dataset.problems]

    @property
    def fingerprint(self) -> str:
        """Equal for equal lines in equal order, wherever they lie."""
        joined = "\n".join(dataset.fingerprint for dataset in self.datasets)
        return blake2b(joined.encode(), digest_size=16).hexdigest()

    @cached_property
    def shards(self) -> tuple[ShardRef, ...]:
        """The S shards of all data sets."""
        return tuple(shard for dataset in self.datasets for shard in dataset.shards)

    @cached_property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """int64 (S,): lines of each shard."""
        return np.concatenate([dataset.index.shard_sizes for dataset in self.datasets])

    @cached_property
    def shard_starts(self) -> npt.NDArray[np.int64]:
        """int64 (S + 1,): number of the first line of each shard, and of all lines at the end."""
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.shard_sizes)])

    def record(self, line: int) -> Record:
        """The text and image of line ``line``, 0 <= line < len.

        Raises:
            UnreadableLine: its shard is missing, cut short or cannot be read, or its bytes have changed.
            InputError: the index itself is damaged.
        """
        dataset, entry = self._find(line)
        shard = dataset.shards[entry.shard]
        if entry.offset < 0 or entry.offset + entry.size > shard.bytes:
            raise UnreadableLine(f"line {_name(entry)} lies outside of {shard.address} by its index")
        png = self.storage.read(shard.address, entry.offset, entry.size)
        if zlib.crc32(png) != entry.crc:
            raise UnreadableLine(
                f"the image of line {_name(entry)} in {shard.address} has changed on its disk"
            )
        return Record(
            text=entry.text,
            base_dir=cast("BaseDirection | None", entry.base_dir),
            png=png,
            source=entry.source,
            line_id=entry.line_id,
            normalized_height=dataset.normalized_height,
            bitonal_source=dataset.source_mode == "1",
        )

    def place(self, line: int) -> tuple[str, str]:
        """(source file, line id) of line ``line``; empty where the data set does not name them."""
        _, entry = self._find(line)
        return entry.source or "", entry.line_id or ""

    def index(self) -> SampleIndex:
        """The columns of the indexes of all data sets, joined."""
        if self._index is None:
            self._index = SampleIndex(self.datasets)
        return self._index

    def text_chunks(
        self, lines_per_chunk: int = LINES_PER_CHUNK
    ) -> Iterator[tuple[int, list[str], list[BaseDirection | None]]]:
        """(number of the first line, raw texts, base directions stated) of all lines, in order.

        A chunk has at most ``lines_per_chunk`` lines, and no more than one is in memory.
        """
        for start, dataset in zip(self._starts, self.datasets, strict=False):
            for first, texts, directions in dataset.index.text_chunks(lines_per_chunk):
                yield start + first, texts, cast("list[BaseDirection | None]", directions)

    def _find(self, line: int) -> tuple[Dataset, IndexEntry]:
        if not 0 <= line < len(self):
            raise IndexError(f"line {line} of {len(self)} lines")
        number = bisect_right(self._starts, line) - 1
        return self.datasets[number], self.datasets[number].index.entry(line - self._starts[number])


def open_collection(addresses: Sequence[str | Path], storage: ShardStorage | None = None) -> LineCollection:
    """Open compiled data sets by their addresses.

    Raises:
        InputError: one is none, or they hold lines of different types.
    """
    storage = storage or ShardStorage()
    return LineCollection([open_dataset(address, storage) for address in addresses], storage)


def _name(entry: IndexEntry) -> str:
    return " of ".join(part for part in (entry.line_id, entry.source) if part) or "without id"


def _require_one_type(datasets: Sequence[Dataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if other.line_type != first.line_type:
            raise InputError(
                f"{other.name} holds {other.line_type} lines but {first.name} holds {first.line_type} lines; "
                "train on one type, or relabel one with `ketos compile --force-type`."
            )
