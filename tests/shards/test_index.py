"""The file of an index: what goes in comes out, one line costs little, and damage never crashes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distrib.errors import InputError, RunError
from distrib.shards.index import INDEX_SCHEMA, DatasetIndex, memory_index, open_index, write_index

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
NAMES = st.none() | TEXTS
ROWS = st.fixed_dictionaries(
    {
        "image_offset": st.integers(-1, 2**62),
        "image_bytes": st.integers(0, 2**31 - 1),
        "image_crc": st.integers(0, 2**32 - 1),
        "text": TEXTS,
        "base_dir": st.sampled_from([None, "L", "R"]),
        "source": NAMES,
        "line_id": NAMES,
        "width": st.integers(0, 2**31 - 1),
        "height": st.integers(0, 2**31 - 1),
        "columns": st.integers(0, 2**31 - 1),
        "key": st.integers(0, 2**64 - 1),
        "page_key": st.integers(0, 2**64 - 1),
        "split": st.integers(0, 3),
    }
)
SHARDS = st.lists(st.lists(ROWS, max_size=6), max_size=5)


def row(number: int, **changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "image_offset": 100 * number,
        "image_bytes": 50,
        "image_crc": number,
        "text": f"line {number}",
        "base_dir": None,
        "source": f"page{number // 3}.xml",
        "line_id": f"l{number}",
        "width": 10 + number,
        "height": 20,
        "columns": 7,
        "key": 1000 + number,
        "page_key": 1 + number // 3,
        "split": 0,
    }
    return {**values, **changes}


def batch(rows: Sequence[dict[str, object]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=INDEX_SCHEMA)


def written(path: Path, shards: Sequence[Sequence[dict[str, object]]]) -> DatasetIndex:
    write_index(path, (batch(rows) for rows in shards))
    return open_index(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shards=SHARDS, chunk=st.integers(1, 4), mapped=st.booleans())
def test_every_value_of_every_line_comes_back(
    tmp_path: Path, shards: list[list[dict[str, object]]], chunk: int, mapped: bool
) -> None:
    batches = [batch(rows) for rows in shards]
    index = written(tmp_path / "i", shards) if mapped else memory_index(batches)
    index = pickle.loads(pickle.dumps(index))
    lines = [(shard, values) for shard, rows in enumerate(shards) for values in rows]
    assert len(index) == len(lines)
    assert index.shard_sizes.tolist() == [len(rows) for rows in shards]
    for number, (shard, values) in enumerate(lines):
        entry = index.entry(number)
        assert (entry.shard, entry.offset, entry.size, entry.crc) == (
            shard,
            values["image_offset"],
            values["image_bytes"],
            values["image_crc"],
        )
        for name in ("text", "base_dir", "source", "line_id", "split", "width", "height", "columns"):
            assert getattr(entry, name) == values[name]
    for name in ("width", "columns", "key", "page_key", "split"):
        column = index.column(name)
        assert column.tolist() == [values[name] for _, values in lines]
        assert str(column.dtype) == str(INDEX_SCHEMA.field(name).type)
    assert index.has_page_keys == all(values["page_key"] for _, values in lines)
    chunks = list(index.text_chunks(chunk))
    assert all(len(texts) <= chunk for _, texts, _ in chunks)
    assert [first for first, _, _ in chunks] == np.cumsum([0, *(len(c[1]) for c in chunks)])[:-1].tolist()
    assert [text for _, texts, _ in chunks for text in texts] == [values["text"] for _, values in lines]
    assert [way for _, _, ways in chunks for way in ways] == [values["base_dir"] for _, values in lines]


def test_lines_outside_are_refused(tmp_path: Path) -> None:
    index = written(tmp_path / "i", [[row(0)], []])
    for number in (-1, 1):
        with pytest.raises(IndexError):
            index.entry(number)


def test_pickle_of_a_mapped_index_does_not_grow_with_its_lines(tmp_path: Path) -> None:
    """It goes to every worker process."""
    index = written(tmp_path / "i", [[row(i) for i in range(500)]] * 4)
    index.entry(700)
    assert len(pickle.dumps(index)) < 1000


def test_index_replaced_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    """A worker started after a new compile would read other lines than were planned."""
    pickled = pickle.dumps(written(tmp_path / "i", [[row(0), row(1)]]))
    written(tmp_path / "i", [[row(0), row(2)]])
    with pytest.raises(RunError, match="replaced"):
        pickle.loads(pickled)


def test_index_rewritten_alike_is_accepted(tmp_path: Path) -> None:
    """Two ranks that open one shard both write its index; the workers of the first must still start."""
    pickled = pickle.dumps(written(tmp_path / "i", [[row(0)]]))
    written(tmp_path / "i", [[row(0)]])
    assert pickle.loads(pickled).entry(0).text == "line 0"


def test_index_deleted_from_a_cache_is_sent_whole(tmp_path: Path) -> None:
    index = written(tmp_path / "i", [[row(0)], [row(1)]])
    (tmp_path / "i").unlink()
    assert pickle.loads(pickle.dumps(index)).entry(1).text == "line 1"


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    """Thousands of shards may each have an index, and a process may have only so many files open."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    indexes = [written(tmp_path / f"{i}", [[row(i)]]) for i in range(5)]
    assert len(list(descriptors.iterdir())) == before
    assert [index.entry(0).text for index in indexes] == [f"line {i}" for i in range(5)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_keep_what_was_read(tmp_path: Path) -> None:
    """Pages of a mapped file count as the process's memory until they are given back."""
    text = "x" * 200
    rows = batch([row(i, text=text) for i in range(4000)])
    write_index(tmp_path / "i", (rows for _ in range(60)))
    index = open_index(tmp_path / "i")
    index.column("width")
    before = resident_bytes()
    assert sum(len(texts) for _, texts, _ in index.text_chunks()) == 240_000
    for line in range(0, 240_000, 3):
        index.entry(line)
    assert (tmp_path / "i").stat().st_size > 60 << 20
    assert resident_bytes() - before < 30 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_missing_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.arrow does not exist"):
        open_index(tmp_path / "gone.arrow")


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"no arrow file at all" * 50])
def test_file_that_is_no_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        open_index(tmp_path / "x")


def test_arrow_file_that_is_no_index(tmp_path: Path) -> None:
    with pa.ipc.new_file(str(tmp_path / "x"), pa.schema([("a", pa.int32())])):
        pass
    with pytest.raises(InputError, match="no index"):
        open_index(tmp_path / "x")


def test_index_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.shards.index_file.INDEX_VERSION", 2)
    write_index(tmp_path / "x", [batch([row(0)])])
    monkeypatch.undo()
    with pytest.raises(InputError, match="version"):
        open_index(tmp_path / "x")


def test_numbers_that_are_null_are_refused(tmp_path: Path) -> None:
    """numpy would take them for whatever lies in their place."""
    write_index(tmp_path / "x", [batch([row(0, width=None)])])
    with pytest.raises(InputError, match="damaged"):
        open_index(tmp_path / "x")


def test_killed_while_writing_leaves_the_index_of_before(tmp_path: Path) -> None:
    written(tmp_path / "i", [[row(0)]])

    def fails() -> object:
        yield batch([row(1)])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path / "i", fails())  # type: ignore[arg-type]
    assert open_index(tmp_path / "i").entry(0).text == "line 0"
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    """Damage on a disk gives our error or other content, never a crash of the process."""
    path = tmp_path / "i"
    write_index(path, [batch([row(i, base_dir="L", text="äöü") for i in range(3)]), batch([row(9)])])
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        index = open_index(path)
        for name in ("width", "key", "split"):
            index.column(name)
        list(index.text_chunks())
        for number in range(min(len(index), 50)):
            index.entry(number)
    except InputError:
        pass
