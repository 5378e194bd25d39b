"""The index of an Arrow file names the very bytes of each image, whoever wrote the file."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from distrib.errors import InputError
from distrib.shards import arrow_index, image_facts
from distrib.shards.arrow_index import index_arrow
from distrib.shards.arrow_schema import KRAKEN_FIELDS, OWN_FIELDS, SCHEMA, content_key

from .conftest import ReadBack, Write, make_line


def rewritten(path: Path, keep: pa.Schema, **options: object) -> Path:
    """The data set at ``path`` with only the columns of ``keep``, as another program may write it."""
    target = path.with_name("rewritten.arrow")
    with pa.ipc.open_file(path) as reader:
        schema = keep.with_metadata(reader.schema.metadata)
        with pa.ipc.new_file(str(target), schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            for number in range(reader.num_record_batches):
                writer.write_batch(reader.get_batch(number).select(schema.names))
    return target


def test_own_file_is_indexed_without_reading_an_image(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of terabytes must open in the time its texts take."""
    path = write((make_line(i, columns=i) for i in range(7)), recordbatch_size=3)
    monkeypatch.setattr(arrow_index, "read_image_facts", None)
    batch = index_arrow(path)
    content = path.read_bytes()
    for number, row in enumerate(batch.to_pylist()):
        png = content[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
        assert png == make_line(number).png
        assert (zlib.crc32(png), row["columns"]) == (row["image_crc"], number)


def test_foreign_file_is_measured_in_pieces(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record batches of others may be larger than memory; any size of piece gives the same."""
    path = rewritten(write((make_line(i) for i in range(9)), recordbatch_size=4), pa.schema(KRAKEN_FIELDS))
    whole = index_arrow(path)
    monkeypatch.setattr(image_facts, "_READ_BYTES", 2 * len(make_line(0).png))
    assert index_arrow(path).equals(whole)
    for number, row in enumerate(whole.to_pylist()):
        line = make_line(number)
        assert (row["width"], row["height"]) == (line.width, line.height)
        assert row["image_crc"] == zlib.crc32(line.png)
        assert row["key"] == content_key(line.text.encode(), line.png)
        assert (row["source"], row["line_id"], row["page_key"], row["columns"]) == (None, None, 0, 0)


def test_file_of_ours_from_before_checksums_keeps_its_keys(write: Write) -> None:
    """Keys decide splits and order, so runs on older data sets must find the same ones."""
    path = write(make_line(i) for i in range(4))
    older = [field for field in SCHEMA if field.name not in ("image_crc", "columns")]
    old, new = index_arrow(rewritten(path, pa.schema(older))), index_arrow(path)
    for name in ("key", "page_key", "width", "height", "image_crc", "source", "text"):
        assert old.column(name).equals(new.column(name))
    assert set(OWN_FIELDS) - set(older)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_file_is_refused_with_the_way_out(write: Write, compression: str) -> None:
    """Its buffers lie in memory instead of in the file: their addresses would be offsets of nothing."""
    path = rewritten(write([make_line(0)]), SCHEMA, compression=compression)
    with pytest.raises(InputError, match=r"compressed.*compile it again"):
        index_arrow(path)


def test_more_text_than_an_index_holds(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflows(*_: object) -> None:
        raise pa.ArrowInvalid("offset overflow while concatenating arrays")

    path = write([make_line(0)])
    monkeypatch.setattr(arrow_index, "_join", overflows)
    with pytest.raises(InputError, match="--shard-format"):
        index_arrow(path)


def test_index_does_not_keep_the_file_mapped(write: Write) -> None:
    """Else the disk space of a deleted data set would stay taken for as long as a run lasts."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    path = write([make_line(0)])
    batch = index_arrow(path)
    assert str(path) not in maps.read_text()
    assert batch.num_rows == 1


def test_sizes_that_cannot_be_are_none(write: Write) -> None:
    lines = [make_line(0, width=-5, columns=-1), make_line(1, base_dir="up")]
    batch = index_arrow(write(lines))
    assert batch.column("width").to_pylist() == [0, lines[1].width]
    assert batch.column("columns").to_pylist() == [0, 0]
    assert batch.column("base_dir").to_pylist() == [None, None]


def test_memory_holds_no_images(write: Write) -> None:
    """Mapped pages of images would count as this process's memory, and grow with the data."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs /proc")
    noise = np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8).tobytes()
    foreign = write((make_line(i, png=noise) for i in range(250)), recordbatch_size=10)
    rewritten_path = rewritten(foreign, pa.schema(KRAKEN_FIELDS))
    index_arrow(foreign)
    before = int(status.read_text().split()[1])
    index_arrow(foreign)
    index_arrow(rewritten_path)
    grown = (int(status.read_text().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    assert foreign.stat().st_size > 90 << 20
    assert grown < 40 << 20


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["alto", "page", "pairs"])
def test_every_line_that_kraken_compiled_is_found(oracle_dir: Path, name: str) -> None:
    path = oracle_dir / f"{name}.arrow"
    stored = ReadBack(path)
    with pa.ipc.open_file(path) as reader:
        lines = reader.read_all()["lines"].to_pylist()
    assert len(stored) == len(lines)
    for number, (entry, line) in enumerate(zip(stored.entries(), lines, strict=True)):
        assert (entry.text, stored.png(number)) == (line["text"], line["im"])
        assert Image.open(io.BytesIO(line["im"])).size == (entry.width, entry.height)
