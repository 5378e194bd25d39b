"""What the writer is given is what the reader gives back."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from distrib.errors import InputError, RunError
from distrib.shards.arrow import SPLIT_CODES, UNTAGGED, ArrowDataset
from distrib.shards.arrow_schema import KRAKEN_FIELDS, line_key, page_key
from distrib.shards.arrow_writer import ArrowWriter

from .conftest import Write, make_image, make_line

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def test_every_field_of_every_line_comes_back(write: Write) -> None:
    lines = [
        make_line(0, "Äpfel", languages=("deu", "lat"), split="train", base_dir="L"),
        make_line(1, "نص", mode="1", split="validation", base_dir="R"),
        make_line(2, "", mode="RGB", split="test"),
        make_line(3, "no split"),
    ]
    dataset = ArrowDataset(write(lines, recordbatch_size=3))
    assert len(dataset) == len(lines)
    for number, line in enumerate(lines):
        record = dataset.record(number)
        assert (record.text, record.png, record.languages) == (line.text, line.png, line.languages)
        assert (record.source, record.line_id) == (line.source, line.line_id)
        assert (record.base_dir, record.split) == (line.base_dir, line.split)
        assert record.image().mode == line.mode
        wanted = make_image(number, line.mode)
        assert ImageChops.difference(record.image().convert("RGB"), wanted.convert("RGB")).getbbox() is None
    assert list(dataset.texts()) == [line.text for line in lines]


def test_index_matches_records(write: Write) -> None:
    lines = [
        make_line(0, split="train"),
        make_line(1, split="validation"),
        make_line(4, split="test"),
        make_line(5),
    ]
    dataset = ArrowDataset(write(lines, recordbatch_size=3))
    index = dataset.index()
    assert index.widths.tolist() == [line.width for line in lines]
    assert index.heights.tolist() == [line.height for line in lines]
    assert index.keys.tolist() == [line_key(line.source, line.line_id, line.text) for line in lines]
    assert index.page_keys is not None
    assert index.page_keys.tolist() == [page_key(line.source) for line in lines]
    assert index.splits.tolist() == [*SPLIT_CODES.values(), UNTAGGED]
    dtypes = [array.dtype for array in (index.widths, index.heights, index.keys, index.splits)]
    assert dtypes == [np.int32, np.int32, np.uint64, np.uint8]


def test_keys_are_the_same_on_every_machine() -> None:
    """A changed key changes order, augmentation and splits of existing runs."""
    assert line_key("f11.xml", "line_0", "ſonneur") == 832613162883070074
    assert page_key("f11.xml") == 16184489262211703824


def test_metadata_counts_what_was_written(write: Write) -> None:
    lines = [
        make_line(0, "aab", split="train", languages=("fra",)),
        make_line(1, "b c", mode="1"),
        make_line(2, "", split="train"),
    ]
    dataset = ArrowDataset(write(lines, legacy_polygons=True, line_type="baselines"))
    assert dict(dataset.alphabet) == {"a": 2, "b": 2, " ": 1, "c": 1}
    assert (dataset.counts.all, dataset.counts.train, dataset.counts.test) == (3, 2, 0)
    assert dataset.line_type == "baselines"
    assert dataset.legacy_polygons
    assert dataset.im_mode == "L"


@pytest.mark.parametrize(
    ("modes", "largest"), [(("1", "1"), "1"), (("L", "1"), "L"), (("1", "RGB", "L"), "RGB")]
)
def test_image_mode_is_the_largest_that_occurs(write: Write, modes: tuple[str, ...], largest: str) -> None:
    """A mode below one that occurs makes kraken build a network with too few input channels."""
    dataset = ArrowDataset(write([make_line(i, mode=mode) for i, mode in enumerate(modes)]))
    assert dataset.im_mode == largest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=12), size=st.integers(1, 5))
def test_any_text_survives(write: Write, texts: list[str], size: int) -> None:
    """NUL, newlines, private use, unassigned and combining code points are all somebody's ground truth."""
    dataset = ArrowDataset(write((make_line(0, text) for text in texts), recordbatch_size=size))
    assert list(dataset.texts()) == texts
    assert [dataset.record(i).text for i in range(len(dataset))] == texts
    assert set(dataset.alphabet) == set("".join(texts))


def test_lone_surrogate_is_refused_and_leaves_the_writer_usable(tmp_path: Path) -> None:
    with ArrowWriter(tmp_path / "a.arrow", line_type="bbox") as writer:
        with pytest.raises(UnicodeEncodeError):
            writer.add(make_line(0, "x\ud800"))
        writer.add(make_line(1, "good"))
    dataset = ArrowDataset(tmp_path / "a.arrow")
    assert list(dataset.texts()) == ["good"]
    assert dict(dataset.alphabet) == {"g": 1, "o": 2, "d": 1}


def test_file_name_that_is_not_utf8_is_stored_readably(write: Write) -> None:
    """Bytes of old Latin-1 file names arrive as surrogates; they must not stop the compilation."""
    line = make_line(0, source="f\udce9vrier.xml", line_id="f\udce9vrier")
    record = ArrowDataset(write([line])).record(0)
    assert (record.source, record.line_id) == ("f?vrier.xml", "f?vrier")


def test_batches_have_the_given_size_and_kraken_columns_come_first(write: Write) -> None:
    path = write((make_line(i) for i in range(7)), recordbatch_size=3)
    with pa.ipc.open_file(path) as reader:
        assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [3, 3, 1]
        assert list(reader.schema)[: len(KRAKEN_FIELDS)] == list(KRAKEN_FIELDS)


def test_large_images_end_a_batch_early(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A huge --recordbatch-size must not gather gigabytes before the first write."""
    size = len(make_line(0).png)
    monkeypatch.setattr("distrib.shards.arrow_writer.MAX_BATCH_BYTES", 2 * size)
    path = write((make_line(0) for _ in range(5)), recordbatch_size=1_000_000)
    with pa.ipc.open_file(path) as reader:
        assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [2, 2, 1]
    assert len(ArrowDataset(path)) == 5


def test_pickle_is_small_and_opens_the_same_lines(write: Write) -> None:
    """A data set goes to every worker process; it must not take its lines or its mapping along."""
    dataset = ArrowDataset(write(make_line(i) for i in range(50)))
    dataset.record(0)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).record(49).text == "line 49"


def test_worker_refuses_a_file_replaced_since_the_run_began(write: Write) -> None:
    """Otherwise a worker restarted after a new compile would train on other lines than planned."""
    pickled = pickle.dumps(ArrowDataset(write([make_line(0)])))
    write([make_line(1), make_line(2)])
    with pytest.raises(RunError, match="replaced"):
        pickle.loads(pickled)


def test_images_are_not_copied_until_asked(write: Write) -> None:
    dataset = ArrowDataset(write(make_line(i) for i in range(4)))
    before = pa.total_allocated_bytes()
    records = [dataset.record(i) for i in range(4)]
    assert pa.total_allocated_bytes() == before
    assert records[2].image().size == Image.open(pa.BufferReader(records[2].png)).size


def test_record_outside_the_data_set(write: Write) -> None:
    dataset = ArrowDataset(write([make_line(0)]))
    for number in (-1, 1):
        with pytest.raises(IndexError):
            dataset.record(number)


def test_bad_batch_size_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--recordbatch-size"):
        ArrowWriter(tmp_path / "a.arrow", line_type="bbox", recordbatch_size=0)
