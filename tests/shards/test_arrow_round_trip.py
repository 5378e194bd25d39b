"""What the writer is given is what the reader gives back."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ImageChops

from distrib.errors import InputError
from distrib.shards.arrow import SPLIT_CODES, UNTAGGED, open_arrow
from distrib.shards.arrow_schema import KRAKEN_FIELDS, line_key, page_key
from distrib.shards.compiling.arrow_writer import ArrowWriter
from distrib.shards.png import decode_png

from .conftest import ReadBack, Write, make_image, make_line

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def test_every_field_of_every_line_comes_back(write: Write) -> None:
    lines = [
        make_line(0, "Äpfel", languages=("deu", "lat"), split="train", base_dir="L", columns=77),
        make_line(1, "نص", mode="1", split="validation", base_dir="R"),
        make_line(2, "", mode="RGB", split="test"),
        make_line(3, "no split"),
    ]
    stored = ReadBack(write(lines, recordbatch_size=3))
    assert len(stored) == len(lines)
    for number, (entry, line) in enumerate(zip(stored.entries(), lines, strict=True)):
        assert (entry.text, stored.png(number)) == (line.text, line.png)
        assert (entry.source, entry.line_id) == (line.source, line.line_id)
        assert (entry.width, entry.height, entry.columns) == (line.width, line.height, line.columns)
        assert entry.base_dir == line.base_dir
        assert entry.split == (UNTAGGED if line.split is None else SPLIT_CODES[line.split])
        image = decode_png(stored.png(number))
        assert image.mode == line.mode
        wanted = make_image(number, line.mode)
        assert ImageChops.difference(image.convert("RGB"), wanted.convert("RGB")).getbbox() is None
    assert stored.texts() == [line.text for line in lines]


def test_languages_are_where_kraken_looks_for_them(write: Write) -> None:
    path = write([make_line(0, languages=("deu", "lat")), make_line(1)])
    with pa.ipc.open_file(path) as reader:
        assert reader.read_all()["lines"].combine_chunks().field("language").to_pylist() == [
            ["deu", "lat"],
            None,
        ]


def test_index_holds_the_keys_of_lines_and_pages(write: Write) -> None:
    lines = [make_line(i) for i in (0, 1, 4, 5)]
    index = ReadBack(write(lines, recordbatch_size=3)).index
    assert index.column("key").tolist() == [line_key(line.source, line.line_id, line.text) for line in lines]
    assert index.has_page_keys
    assert index.column("page_key").tolist() == [page_key(line.source) for line in lines]


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
    path = write(lines, legacy_polygons=True, line_type="baselines")
    dataset, counts = ReadBack(path).dataset, open_arrow(path).metadata.counts
    assert dataset.alphabet == {"a": 2, "b": 2, " ": 1, "c": 1}
    assert (counts.all, counts.train, counts.test) == (3, 2, 0)
    assert dataset.line_type == "baselines"
    assert dataset.legacy_polygons
    assert (dataset.im_mode, dataset.source_mode) == ("L", "L")
    assert (dataset.normalized_height, dataset.height) == (0, 0)


def test_normalised_lines_say_so(write: Write) -> None:
    """Training would straighten and scale them a second time, or take bitonal pages for grey ones."""
    path = write([make_line(0, source_mode="1")], height=48, normalized=True)
    dataset = ReadBack(path).dataset
    assert (dataset.normalized_height, dataset.height) == (48, 48)
    assert (dataset.im_mode, dataset.source_mode) == ("L", "1")


@pytest.mark.parametrize(
    ("modes", "largest"), [(("1", "1"), "1"), (("L", "1"), "L"), (("1", "RGB", "L"), "RGB")]
)
def test_image_mode_is_the_largest_that_occurs(write: Write, modes: tuple[str, ...], largest: str) -> None:
    """A mode below one that occurs makes kraken build a network with too few input channels."""
    stored = ReadBack(write([make_line(i, mode=mode) for i, mode in enumerate(modes)]))
    assert stored.dataset.im_mode == largest


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXTS, min_size=1, max_size=12), size=st.integers(1, 5))
def test_any_text_survives(write: Write, texts: list[str], size: int) -> None:
    """NUL, newlines, private use, unassigned and combining code points are all somebody's ground truth."""
    stored = ReadBack(write((make_line(0, text) for text in texts), recordbatch_size=size))
    assert stored.texts() == texts
    assert [entry.text for entry in stored.entries()] == texts
    assert set(stored.dataset.alphabet or ()) == set("".join(texts))


def test_lone_surrogate_is_refused_and_leaves_the_writer_usable(tmp_path: Path) -> None:
    with ArrowWriter(tmp_path / "a.arrow", line_type="bbox") as writer:
        with pytest.raises(UnicodeEncodeError):
            writer.add(make_line(0, "x\ud800"))
        writer.add(make_line(1, "good"))
    stored = ReadBack(tmp_path / "a.arrow")
    assert stored.texts() == ["good"]
    assert stored.dataset.alphabet == {"g": 1, "o": 2, "d": 1}


def test_file_name_that_is_not_utf8_is_stored_readably(write: Write) -> None:
    """Bytes of old Latin-1 file names arrive as surrogates; they must not stop the compilation."""
    line = make_line(0, source="f\udce9vrier.xml", line_id="f\udce9vrier")
    entry = ReadBack(write([line])).index.entry(0)
    assert (entry.source, entry.line_id) == ("f?vrier.xml", "f?vrier")


def test_batches_have_the_given_size_and_kraken_columns_come_first(write: Write) -> None:
    path = write((make_line(i) for i in range(7)), recordbatch_size=3)
    with pa.ipc.open_file(path) as reader:
        assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [3, 3, 1]
        assert list(reader.schema)[: len(KRAKEN_FIELDS)] == list(KRAKEN_FIELDS)


def test_large_images_end_a_batch_early(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A huge --recordbatch-size must not gather gigabytes before the first write."""
    size = len(make_line(0).png)
    monkeypatch.setattr("distrib.shards.compiling.arrow_writer.MAX_BATCH_BYTES", 2 * size)
    path = write((make_line(0) for _ in range(5)), recordbatch_size=1_000_000)
    with pa.ipc.open_file(path) as reader:
        assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [2, 2, 1]
    assert len(ReadBack(path)) == 5


def test_bad_batch_size_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--recordbatch-size"):
        ArrowWriter(tmp_path / "a.arrow", line_type="bbox", recordbatch_size=0)
