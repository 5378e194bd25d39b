"""Writing an Arrow data set as a stream: memory holds one record batch, whatever the file's size."""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import pyarrow as pa

from distrib.errors import InputError
from distrib.files import AsideFile, check_output, scratch_file, write_error
from distrib.ground_truth.records import BaseDirection, LineType, Split
from distrib.shards.arrow_schema import (
    LINES_TYPE,
    SCHEMA,
    SPLITS,
    Counts,
    DatasetMetadata,
    ImageMode,
    largest_mode,
    line_key,
    page_key,
)

MAX_BATCH_BYTES: Final = 4 << 20
"""A batch with this many bytes of images is written before it has all its lines: it bounds memory, and
keeps offsets into a binary column far from their limit of 2 GiB."""

_ROW_BYTES: Final = 128
"""What a line takes beside its image and text, roughly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedLine:
    """A line as it is stored: raw text, PNG and what its source says about it.

    ``source`` is a file name without its folder; ``width`` and ``height`` are of the image in pixels.
    ``columns`` is the line's width as network input of the data set's height, without padding (0: not
    known). ``source_mode`` is the mode the image had when it was cut (None: ``mode``).
    """

    text: str
    png: bytes
    source: str
    line_id: str
    width: int
    height: int
    mode: ImageMode
    languages: tuple[str, ...] = ()
    split: Split | None = None
    base_dir: BaseDirection | None = None
    columns: int = 0
    source_mode: ImageMode | None = None

    @property
    def image_crc(self) -> int:
        """CRC-32 of the PNG, as zlib computes it."""
        return zlib.crc32(self.png)


class ArrowWriter:
    """Writes lines to an Arrow data set that appears under ``path`` only when it is whole.

    A context manager: leaving the block normally finishes the file, leaving it by any exception
    (Ctrl-C too) discards it and leaves what was at ``path`` before.

    The alphabet, the counts and the image mode belong in the schema at the file's beginning and are
    known only at its end. So batches first go to a nameless scratch file beside the output and are then
    copied, one at a time, under the final schema: twice the disk space for a moment, and memory for one
    batch.

    ``height`` in pixels is that of ``columns`` (0: those are not known); ``normalized`` says that the images
    are network input of that height already.

    Raises:
        InputError: the path cannot be written, or no line was added.
        RunError: the disk is full or fails.
    """

    def __init__(
        self,
        path: Path,
        *,
        line_type: LineType,
        legacy_polygons: bool = False,
        recordbatch_size: int = 100,
        height: int = 0,
        normalized: bool = False,
    ) -> None:
        if recordbatch_size < 1:
            raise InputError(f"--recordbatch-size is {recordbatch_size}; give 1 or more lines a batch.")
        check_output(path)
        self.path = path
        self.alphabet: Counter[str] = Counter()
        self.lines = 0
        self.size = 0
        self._height = height
        self._normalized = normalized
        self._line_type = line_type
        self._legacy_polygons = legacy_polygons
        self._batch_size = recordbatch_size
        self._languages: Counter[str] = Counter()
        self._splits: Counter[Split] = Counter()
        self._modes: set[ImageMode] = set()
        self._source_modes: set[ImageMode] = set()
        self._pending: list[PackedLine] = []
        self._pending_bytes = 0

    def __enter__(self) -> ArrowWriter:
        try:
            self._scratch = scratch_file(self.path.parent)
            self._batches = pa.ipc.new_stream(self._scratch, SCHEMA)
        except OSError as error:
            raise write_error(self.path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as problem:
            raise write_error(self.path, problem) from problem
        finally:
            # On a full disk closing fails once more, with nothing left to lose.
            with contextlib.suppress(OSError):
                self._batches.close()
            with contextlib.suppress(OSError):
                self._scratch.close()

    def add(self, line: PackedLine) -> None:
        """Add one line. Raises RunError, and UnicodeEncodeError for text with lone surrogates."""
        text = line.text.encode()  # before anything is counted: the column holds UTF-8
        self.lines += 1
        self.size += len(line.png) + len(text) + _ROW_BYTES
        self.alphabet.update(line.text)
        self._languages.update(line.languages)
        self._modes.add(line.mode)
        self._source_modes.add(line.source_mode or line.mode)
        if line.split is not None:
            self._splits[line.split] += 1
        self._pending.append(line)
        self._pending_bytes += len(line.png)
        if len(self._pending) >= self._batch_size or self._pending_bytes >= MAX_BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        try:
            self._batches.write_batch(_to_batch(self._pending))
        except OSError as error:
            raise write_error(self.path, error) from error
        self._pending, self._pending_bytes = [], 0

    def _finish(self) -> None:
        if not self.lines:
            raise InputError(f"{self.path}: there are no lines to write; give ground truth with lines.")
        self._flush()
        self._batches.close()
        self._scratch.seek(0)
        schema = self._metadata().to_schema()
        with AsideFile(self.path) as aside:
            with (
                pa.ipc.open_stream(self._scratch, memory_pool=pa.system_memory_pool()) as batches,
                pa.ipc.new_file(aside.file, schema) as target,
            ):
                for batch in batches:
                    target.write_batch(batch)
            aside.commit()

    def _metadata(self) -> DatasetMetadata:
        return DatasetMetadata(
            line_type=self._line_type,
            alphabet=self.alphabet,
            im_mode=largest_mode(self._modes),
            legacy_polygons=self._legacy_polygons,
            languages=self._languages,
            counts=Counts(all=self.lines, **{split: self._splits[split] for split in SPLITS}),
            normalized=self._normalized,
            height=self._height,
            source_mode=largest_mode(self._source_modes),
        )


def _to_batch(lines: Sequence[PackedLine]) -> pa.RecordBatch:
    text_fields = pa.StructArray.from_arrays(
        [
            pa.array([line.text for line in lines], pa.string()),
            # The system's allocator gives memory back; Arrow's own keeps the largest batches ever held.
            pa.array([line.png for line in lines], pa.binary(), memory_pool=pa.system_memory_pool()),
            pa.array([list(line.languages) or None for line in lines], pa.list_(pa.string())),
        ],
        fields=list(LINES_TYPE),
    )
    columns = [
        text_fields,
        *(pa.array([line.split == split for line in lines], pa.bool_()) for split in SPLITS),
        pa.array([storable(line.source) for line in lines], pa.string()),
        pa.array([storable(line.line_id) for line in lines], pa.string()),
        pa.array([line.base_dir for line in lines], pa.string()),
        pa.array([line.width for line in lines], pa.int32()),
        pa.array([line.height for line in lines], pa.int32()),
        pa.array([line_key(line.source, line.line_id, line.text) for line in lines], pa.uint64()),
        pa.array([page_key(line.source) for line in lines], pa.uint64()),
        pa.array([line.image_crc for line in lines], pa.uint32()),
        pa.array([line.columns for line in lines], pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def storable(name: str) -> str:
    """``name`` with ``?`` for the bytes of a file name that are not UTF-8 (lone surrogates in Python)."""
    return name.encode("utf-8", "replace").decode("utf-8")
