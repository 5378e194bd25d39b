"""Files that are no data set, or a damaged one, end in a sentence that names them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.shards.arrow import ArrowDataset
from distrib.shards.arrow_schema import KRAKEN_FIELDS, LINES_TYPE

from .conftest import Write, make_line

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
        ArrowDataset(tmp_path / "gone.arrow")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        ArrowDataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<alto/>", b"ARRO"])
def test_not_arrow(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.xml is not an Arrow file"):
        ArrowDataset(path)


@pytest.mark.parametrize("keep", [6, 100, 0.5, -1])
def test_cut_short(write: Write, keep: float) -> None:
    path = write(make_line(i) for i in range(10))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(InputError, match="cut short"):
        ArrowDataset(path)


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
        ArrowDataset(path)


def test_no_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no lines"):
        ArrowDataset(foreign(tmp_path / "empty.arrow", GOOD_LINES, []))


def test_missing_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'train'"):
        ArrowDataset(foreign(tmp_path / "x.arrow", GOOD_LINES, [row()], KRAKEN_FIELDS[:1]))


def test_column_of_another_type(tmp_path: Path) -> None:
    fields = (pa.field("lines", pa.string()), *KRAKEN_FIELDS[1:])
    rows = [{**row(), "lines": "text"}]
    with pytest.raises(InputError, match="column 'lines' has type string"):
        ArrowDataset(foreign(tmp_path / "x.arrow", GOOD_LINES, rows, fields))


def test_foreign_file_without_our_columns_is_indexed_from_images(tmp_path: Path) -> None:
    lines = [make_line(0, "same"), make_line(1, "same"), make_line(1, "other")]
    path = foreign(tmp_path / "f.arrow", GOOD_LINES, [row(line.text, line.png) for line in lines])
    dataset = ArrowDataset(path)
    index = dataset.index()
    assert index.widths.tolist() == [line.width for line in lines]
    assert index.heights.tolist() == [line.height for line in lines]
    assert len(set(index.keys.tolist())) == 3
    assert index.page_keys is None
    assert (dataset.record(0).source, dataset.record(0).split) == (None, "test")
    assert np.array_equal(index.keys, dataset.index().keys)


def test_foreign_column_that_shares_our_name_but_not_our_type_is_ignored(tmp_path: Path) -> None:
    fields = (*KRAKEN_FIELDS, pa.field("width", pa.string()), pa.field("source", pa.int64()))
    path = foreign(tmp_path / "f.arrow", GOOD_LINES, [{**row(), "width": "wide", "source": 3}], fields)
    dataset = ArrowDataset(path)
    assert dataset.index().widths.tolist() == [make_line(0).width]
    assert dataset.record(0).source is None


def test_line_struct_with_more_fields_is_read(tmp_path: Path) -> None:
    lines_type = pa.struct([pa.field("extra", pa.int32()), *LINES_TYPE])
    fields = (pa.field("lines", lines_type), *KRAKEN_FIELDS[1:])
    dataset = ArrowDataset(foreign(tmp_path / "f.arrow", GOOD_LINES, [row()], fields))
    assert dataset.record(0).text == "a"


@pytest.mark.parametrize("png", [b"", b"\x89PNG", b"GIF89a" * 10, make_line(0).png[:20], b"\xff" * 64])
def test_image_that_is_no_png_has_no_size(tmp_path: Path, png: bytes) -> None:
    """One such line must neither stop the index nor get a size from its garbage."""
    path = foreign(tmp_path / "f.arrow", GOOD_LINES, [row(), row(png=png), row()])
    widths = ArrowDataset(path).index().widths.tolist()
    assert widths == [make_line(0).width, 0, make_line(0).width]


def test_null_text_and_image(tmp_path: Path) -> None:
    rows = [row(None), {**row(), "lines": {"text": "b", "im": None, "language": []}}]
    dataset = ArrowDataset(foreign(tmp_path / "f.arrow", GOOD_LINES, rows))
    assert list(dataset.texts()) == ["", "b"]
    assert dataset.record(1).png == b""
    assert dataset.index().heights.tolist() == [make_line(0).height, 0]


@pytest.mark.parametrize(
    "runs", [[[2, 1]], [[1, 2]], [[-1, 1]], "x", [[1]], [[1 << 70, 1]], [[1, 1 << 70]], 3]
)
def test_wrong_batch_sizes_never_give_wrong_lines(tmp_path: Path, runs: object) -> None:
    own = {"version": 1, "batch_rows": runs}
    path = foreign(tmp_path / "f.arrow", GOOD_LINES, [row("only")], own=own)
    try:
        texts = list(ArrowDataset(path).texts())
    except InputError:
        return
    assert texts == ["only"]


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
        dataset = ArrowDataset(path)
        list(dataset.texts())
        dataset.index()
        for number in range(len(dataset)):
            assert isinstance(dataset.record(number).png, bytes)
    except InputError:
        pass
