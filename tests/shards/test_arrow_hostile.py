"""Files that are no data set, or a damaged one, end in a sentence that names them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.shards.arrow import SPLIT_CODES
from distrib.shards.arrow_index import index_arrow
from distrib.shards.arrow_schema import KRAKEN_FIELDS, LINES_TYPE

from .conftest import ReadBack, Write, make_line

GOOD_LINES = {"type": "kraken_recognition_bbox", "alphabet": {"a": 1}, "im_mode": "L", "counts": {"all": 1}}


def foreign(
    path: Path,
    lines: object,
    rows: list[dict[str, object]],
    fields: tuple[pa.Field, ...] = KRAKEN_FIELDS,
    own: object = None,
) -> Path:
    """An Arrow file as some other program would write it."""
    metadata = {} if lines is None else {"lines": lines if isinstance(lines, str) else json.dumps(lines)}
    if own is not None:
        metadata["ketos_distrib"] = json.dumps(own)
    schema = pa.schema(fields, metadata=metadata)
    with pa.ipc.new_file(str(path), schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    return path


def row(text: str | None = "a", png: bytes | None = None) -> dict[str, object]:
    image = make_line(0).png if png is None else png
    return {
        "lines": {"text": text, "im": image, "language": None},
        "train": False,
        "validation": False,
        "test": True,
    }


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.arrow does not exist"):
        ReadBack(tmp_path / "gone.arrow")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        index_arrow(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<alto/>", b"ARRO"])
def test_not_arrow(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.xml is not an Arrow file"):
        ReadBack(path)


@pytest.mark.parametrize("keep", [6, 100, 0.5, -1])
def test_cut_short(write: Write, keep: float) -> None:
    path = write(make_line(i) for i in range(10))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(InputError, match="cut short"):
        ReadBack(path)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (None, "does not describe text lines"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ({**GOOD_LINES, "type": "kraken_segmentation_baseline"}, "kraken_segmentation_baseline"),
        ({**GOOD_LINES, "type": ["bbox"]}, "type"),
        ({**GOOD_LINES, "im_mode": "CMYK"}, "CMYK"),
        ({**GOOD_LINES, "alphabet": ["a"]}, "alphabet"),
        ({**GOOD_LINES, "counts": {"all": "many"}}, "counts"),
    ],
)
def test_metadata_of_something_else(tmp_path: Path, lines: object, sentence: str) -> None:
    path = foreign(tmp_path / "other.arrow", lines, [row()])
    with pytest.raises(InputError, match=rf"other\.arrow.*{sentence}.*ketos compile"):
        ReadBack(path)


def test_no_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no lines"):
        ReadBack(foreign(tmp_path / "empty.arrow", GOOD_LINES, []))


def test_missing_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'train'"):
        ReadBack(foreign(tmp_path / "x.arrow", GOOD_LINES, [row()], KRAKEN_FIELDS[:1]))


def test_column_of_another_type(tmp_path: Path) -> None:
    fields = (pa.field("lines", pa.string()), *KRAKEN_FIELDS[1:])
    rows = [{**row(), "lines": "text"}]
    with pytest.raises(InputError, match="column 'lines' has type string"):
        ReadBack(foreign(tmp_path / "x.arrow", GOOD_LINES, rows, fields))


def test_foreign_file_without_our_columns_is_indexed_from_images(tmp_path: Path) -> None:
    lines = [make_line(0, "same"), make_line(1, "same"), make_line(1, "other")]
    path = foreign(tmp_path / "f.arrow", GOOD_LINES, [row(line.text, line.png) for line in lines])
    stored = ReadBack(path)
    index = stored.index
    assert index.column("width").tolist() == [line.width for line in lines]
    assert index.column("height").tolist() == [line.height for line in lines]
    assert len(set(index.column("key").tolist())) == 3
    assert not index.has_page_keys
    assert (index.entry(0).source, index.entry(0).split) == (None, SPLIT_CODES["test"])
    assert [stored.png(i) for i in range(3)] == [line.png for line in lines]
    assert np.array_equal(index.column("key"), ReadBack(path).index.column("key"))


def test_foreign_column_that_shares_our_name_but_not_our_type_is_ignored(tmp_path: Path) -> None:
    fields = (*KRAKEN_FIELDS, pa.field("width", pa.string()), pa.field("source", pa.int64()))
    path = foreign(tmp_path / "f.arrow", GOOD_LINES, [{**row(), "width": "wide", "source": 3}], fields)
    index = ReadBack(path).index
    assert index.column("width").tolist() == [make_line(0).width]
    assert index.entry(0).source is None


def test_line_struct_with_more_fields_is_read(tmp_path: Path) -> None:
    lines_type = pa.struct([pa.field("extra", pa.int32()), *LINES_TYPE])
    fields = (pa.field("lines", lines_type), *KRAKEN_FIELDS[1:])
    stored = ReadBack(foreign(tmp_path / "f.arrow", GOOD_LINES, [row()], fields))
    assert (stored.texts(), stored.png(0)) == (["a"], make_line(0).png)


@pytest.mark.parametrize("png", [b"", b"\x89PNG", b"GIF89a" * 10, make_line(0).png[:20], b"\xff" * 64])
def test_image_that_is_no_png_has_no_size(tmp_path: Path, png: bytes) -> None:
    """One such line must neither stop the index nor get a size from its garbage."""
    path = foreign(tmp_path / "f.arrow", GOOD_LINES, [row(), row(png=png), row()])
    widths = ReadBack(path).index.column("width").tolist()
    assert widths == [make_line(0).width, 0, make_line(0).width]


def test_null_text_and_image(tmp_path: Path) -> None:
    rows = [row(None), {**row(), "lines": {"text": "b", "im": None, "language": []}}]
    stored = ReadBack(foreign(tmp_path / "f.arrow", GOOD_LINES, rows))
    assert stored.texts() == ["", "b"]
    assert stored.png(1) == b""
    assert stored.index.column("height").tolist() == [make_line(0).height, 0]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes_never_crash(write: Write, data: st.DataObject) -> None:
    """Damage on a disk gives our error or other content, never a crash of the process."""
    path = write((make_line(i, languages=("x",)) for i in range(3)), recordbatch_size=2)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        stored = ReadBack(path)
        stored.texts()
        for number, entry in enumerate(stored.entries()):
            assert 0 <= entry.offset <= entry.offset + entry.size <= len(content)
            if zlib.crc32(content[entry.offset : entry.offset + entry.size]) == entry.crc:
                assert isinstance(stored.png(number), bytes)
    except InputError:
        pass
