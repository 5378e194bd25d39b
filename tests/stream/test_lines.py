"""Lines of several data sets under one numbering: the right bytes, or an error for that line alone."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distrib.errors import InputError
from distrib.shards.arrow_schema import line_key
from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
from distrib.shards.png import encode_png
from distrib.stream.lines import SPLIT_CODES, UnreadableLine, open_collection


def line(number: int, mode: str = "L", **changes: object) -> PackedLine:
    image = Image.new(mode, (20 + number, 10), 255)
    image.putpixel((number % 20, 3), 0)
    values: dict[str, object] = {
        "text": f"line {number}",
        "png": encode_png(image),
        "source": f"page{number // 3}.xml",
        "line_id": f"l{number}",
        "width": image.width,
        "height": image.height,
        "mode": mode,
    }
    return PackedLine(**{**values, **changes})  # type: ignore[arg-type]


def write(path: Path, lines: list[PackedLine], **options: object) -> Path:
    with ArrowWriter(path, **{"line_type": "bbox", **options}) as writer:  # type: ignore[arg-type]
        for each in lines:
            writer.add(each)
    return path


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    first = [line(0, split="test", base_dir="R"), line(1), line(2)]
    return [
        write(tmp_path / "a.arrow", first),
        write(tmp_path / "b.arrow", [line(3), line(4)], normalized=True, height=10),
    ]


def test_lines_count_through_all_data_sets(two: list[Path]) -> None:
    collection = open_collection(two)
    assert len(collection) == 5
    for number in range(5):
        record = collection.record(number)
        assert (record.text, record.png) == (f"line {number}", line(number).png)
        assert (
            collection.place(number)
            == (record.source, record.line_id)
            == (f"page{number // 3}.xml", f"l{number}")
        )
        assert record.image().size == (20 + number, 10)
        assert record.normalized_height == (10 if number >= 3 else 0)
    assert collection.record(0).base_dir == "R"
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            collection.record(outside)
    assert [(first, texts) for first, texts, _ in collection.text_chunks(2)] == [
        (0, ["line 0", "line 1"]),
        (2, ["line 2"]),
        (3, ["line 3", "line 4"]),
    ]
    assert next(collection.text_chunks())[2] == ["R", None, None]


def test_index_of_all_lines(two: list[Path]) -> None:
    index = open_collection(two).index()
    assert len(index) == 5
    assert index.widths.tolist() == [20, 21, 22, 23, 24]
    assert index.heights.tolist() == [10] * 5
    assert index.columns.tolist() == [0] * 5
    assert index.keys.tolist() == [line_key(f"page{i // 3}.xml", f"l{i}", f"line {i}") for i in range(5)]
    assert index.splits.tolist() == [SPLIT_CODES["test"], 0, 0, 0, 0]
    assert index.page_keys is not None
    assert len(set(index.page_keys.tolist())) == 2
    assert (index.widths.dtype, index.keys.dtype) == (np.int32, np.uint64)
    assert index.widths is index.widths


def test_shards_of_all_data_sets(two: list[Path]) -> None:
    collection = open_collection(two)
    assert [shard.address for shard in collection.shards] == [str(path) for path in two]
    assert collection.shard_sizes.tolist() == [3, 2]
    assert collection.shard_starts.tolist() == [0, 3, 5]
    assert not collection.remote


def test_pages_are_known_only_where_every_data_set_names_them(two: list[Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("a.png", line(0).png), ("a.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    collection = open_collection([*two, tmp_path / "x.tar"])
    assert collection.index().page_keys is None
    assert collection.record(5).source is None
    assert collection.place(5) == ("", "a")


def test_flipped_byte_is_found_in_that_line_alone(two: list[Path]) -> None:
    """PNG decoders let many changes pass, and the run would train on other pixels than were compiled."""
    collection = open_collection(two)
    content = bytearray(two[0].read_bytes())
    content[collection.datasets[0].index.entry(1).offset + 40] ^= 1
    two[0].write_bytes(content)
    assert [collection.record(number).text for number in (0, 2, 3)] == ["line 0", "line 2", "line 3"]
    with pytest.raises(UnreadableLine, match=r"l1 of page0\.xml in .*a\.arrow has changed"):
        collection.record(1)


def test_deleted_shard_fails_line_by_line(two: list[Path]) -> None:
    collection = open_collection(two)
    two[1].unlink()
    assert collection.record(2).text == "line 2"
    with pytest.raises(UnreadableLine, match=r"b\.arrow"):
        collection.record(3)
    assert collection.place(3) == ("page1.xml", "l3")


def test_shard_cut_while_it_is_read(two: list[Path]) -> None:
    collection = open_collection(two)
    os.truncate(two[0], collection.datasets[0].index.entry(2).offset + 5)
    assert collection.record(1).text == "line 1"
    with pytest.raises(UnreadableLine, match="cut short"):
        collection.record(2)


def test_pickle_reads_the_same_lines_and_leaves_columns_behind(two: list[Path]) -> None:
    """A collection goes to every worker process."""
    collection = open_collection(two)
    before = len(pickle.dumps(collection))
    assert collection.index().widths.size == 5
    collection.record(4)
    pickled = pickle.dumps(collection)
    assert len(pickled) == before
    again = pickle.loads(pickled)
    assert again.record(4) == collection.record(4)
    assert again.fingerprint == collection.fingerprint


def test_bitonal_is_about_the_lines_as_they_were_cut(tmp_path: Path) -> None:
    """Lines stored normalised are grey, whatever they were: training must treat them as the raw ones."""
    raw = write(tmp_path / "a.arrow", [line(0, "1")])
    normalized = write(tmp_path / "b.arrow", [line(1, source_mode="1")], normalized=True, height=10)
    grey = write(tmp_path / "c.arrow", [line(2)])
    assert open_collection([raw, normalized]).bitonal
    assert not open_collection([raw, grey]).bitonal
    assert open_collection([normalized]).record(0).bitonal_source
    assert not open_collection([grey]).record(0).bitonal_source


def test_one_line_type(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.arrow", [line(0)]),
        write(tmp_path / "b.arrow", [line(1)], line_type="baselines"),
    ]
    with pytest.raises(InputError, match=r"b\.arrow holds baselines lines but .*a\.arrow holds bbox"):
        open_collection(paths)


def test_no_data_set() -> None:
    with pytest.raises(InputError, match="no data set"):
        open_collection([])


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "TIFF"])
def test_images_of_tars_that_are_no_png(tmp_path: Path, image_format: str) -> None:
    content = io.BytesIO()
    Image.new("CMYK" if image_format != "WEBP" else "RGB", (33, 9)).save(content, format=image_format)
    suffix = {"JPEG": "jpg", "WEBP": "webp", "TIFF": "tif"}[image_format]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in ((f"a.{suffix}", content.getvalue()), ("a.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    image = open_collection([tmp_path / "x.tar"]).record(0).image()
    assert (image.size, image.mode) == ((33, 9), "RGB")


def test_equal_images_have_equal_fingerprints(two: list[Path]) -> None:
    """Under them normalised lines are kept; two images must never share one."""
    collection = open_collection(two)
    prints = [collection.record(number).fingerprint for number in range(5)]
    assert len(set(prints)) == 5
    assert prints[1] == collection.record(1).fingerprint
