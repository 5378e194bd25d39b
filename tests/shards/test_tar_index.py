"""Tars in the WebDataset convention: ours, those of its own library, and broken ones."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.shards import tar_index
from distrib.shards.arrow import SPLIT_CODES
from distrib.shards.arrow_schema import content_key, line_key, page_key
from distrib.shards.compiling.tar_writer import TarWriter
from distrib.shards.tar_index import index_tar, read_tar

from .conftest import make_image, make_line


def encoded(number: int, image_format: str = "PNG") -> bytes:
    target = io.BytesIO()
    make_image(number).save(target, format=image_format)
    return target.getvalue()


def tar_of(path: Path, members: list[tuple[str, bytes]], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def three(path: Path) -> Path:
    pairs = [((f"l{i}.png", encoded(i)), (f"l{i}.txt", b"text %d" % i)) for i in range(3)]
    return tar_of(path, [member for pair in pairs for member in pair])


def texts(path: Path) -> list[str]:
    return index_tar(path)[0].column("text").to_pylist()


def test_own_tar_comes_back_without_reading_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar"
    lines = [
        make_line(0, "Äpfel", split="validation", base_dir="R", columns=31, source_mode="RGB"),
        make_line(1, "", columns=5),
    ]
    with TarWriter(path, line_type="baselines", legacy_polygons=True, height=48, normalized=True) as writer:
        for number, line in enumerate(lines):
            writer.add(line, f"{number:09d}")
    monkeypatch.setattr(tar_index, "_measure", None)
    index = read_tar(path)
    assert index.problems == []
    content = path.read_bytes()
    for row, line in zip(index.batch.to_pylist(), lines, strict=True):
        png = content[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
        assert png == line.png
        assert row["image_crc"] == zlib.crc32(png)
        assert row["key"] == line_key(line.source, line.line_id, line.text)
        assert row["page_key"] == page_key(line.source)
        for name in ("text", "base_dir", "source", "line_id", "width", "height", "columns"):
            assert row[name] == getattr(line, name)
    assert index.batch.column("split").to_pylist() == [SPLIT_CODES["validation"], 0]
    facts = index.facts
    assert (facts.line_type, facts.normalized_height, facts.legacy_polygons) == ("baselines", 48, True)
    assert (facts.im_mode, facts.source_mode) == ("L", "RGB")


def test_tar_of_the_webdataset_library(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for number in range(4):
            writer.write(
                {"__key__": f"sub.dir/line{number}", "png": make_image(number), "txt": f"Wort {number}"}
            )
    batch, problems = index_tar(tmp_path / "w.tar")
    assert problems == []
    assert batch.column("text").to_pylist() == [f"Wort {i}" for i in range(4)]
    assert batch.column("line_id").to_pylist() == [f"sub.dir/line{i}" for i in range(4)]
    sizes = [make_image(i).size for i in range(4)]
    assert list(zip(*(batch.column(name).to_pylist() for name in ("width", "height")), strict=True)) == sizes


@pytest.mark.parametrize(("extension", "image_format"), sorted(tar_index.IMAGE_FORMATS.items()))
def test_every_image_format(tmp_path: Path, extension: str, image_format: str) -> None:
    image = encoded(1, image_format)
    path = tar_of(tmp_path / "x.tar", [(f"a.{extension.upper()}", image), ("a.gt.txt", b"x")])
    row = index_tar(path)[0].to_pylist()[0]
    assert (row["width"], row["height"]) == make_image(1).size
    assert row["image_crc"] == zlib.crc32(image)
    assert row["key"] == content_key(b"x", image)


def test_text_may_stand_in_the_json(tmp_path: Path) -> None:
    notes = json.dumps(
        {"text": "aus JSON", "split": "test", "key": "7", "width": 1, "line_type": "baselines"}
    )
    path = tar_of(tmp_path / "x.tar", [("a.json", notes.encode()), ("a.png", encoded(0))])
    index = read_tar(path)
    row = index.batch.to_pylist()[0]
    assert (row["text"], row["split"]) == ("aus JSON", SPLIT_CODES["test"])
    assert row["width"] == make_image(0).width  # names that others use too are not taken for ours
    assert index.facts.line_type == "baselines"


def test_bad_samples_are_left_out_one_by_one_and_named(tmp_path: Path) -> None:
    good = [("g.png", encoded(0)), ("g.txt", b"good")]
    members = [
        ("no-image.txt", b"x"),
        ("no-text.png", encoded(1)),
        ("also-no-text.png", encoded(1)),
        ("latin1.png", encoded(1)),
        ("latin1.txt", b"\xe9"),
        ("surrogate.json", b'{"text": "\\ud800"}'),
        ("surrogate.png", encoded(1)),
        ("broken.png", b"\x89PNG but no more"),
        ("broken.txt", b"x"),
        ("gif.png", encoded(1, "GIF")),
        ("gif.txt", b"x"),
        ("twice.png", encoded(1)),
        ("twice.png", encoded(2)),
        ("twice.txt", b"x"),
        ("type.json", b'{"line_type": "baselines", "text": "x"}'),
        ("type.png", encoded(1)),
        *[(name.replace("g.", "h."), content) for name, content in good],
    ]
    batch, problems = index_tar(tar_of(tmp_path / "x.tar", [*good, *members]))
    assert batch.column("line_id").to_pylist() == ["g", "h"]
    found = "\n".join(problems)
    for sentence in (
        "1 sample without an image",
        "2 samples without a text (.txt), such as 'no-text'",
        "2 samples with a text that is not UTF-8",
        "2 samples with an image that cannot be read",
        "1 sample with a member that occurs twice",
        "1 sample of another line type",
    ):
        assert sentence in found
    assert all("x.tar" in problem for problem in problems)


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("pages")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, kind in (("pages/a.png", tarfile.SYMTYPE), ("pages/b.txt", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        for name, content in (
            ("README", b"x"),
            (".hidden.png", b"x"),
            ("pages/._c.png", b"x"),
            ("__meta__.json", b"x"),
            ("pages/c.d.png", encoded(0)),
            ("pages/c.txt", b"text"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    batch, problems = index_tar(path)
    assert (batch.column("line_id").to_pylist(), problems) == (["pages/c"], [])


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_dialect(tmp_path: Path, tar_format: int) -> None:
    stem = "f" * 90 + "/" + "ü" * 40
    path = tar_of(
        tmp_path / "x.tar", [(f"{stem}.png", encoded(0)), (f"{stem}.txt", b"text")], format=tar_format
    )
    assert index_tar(path)[0].column("line_id").to_pylist() == [stem]


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = "z\udce9ro"
    path = tar_of(tmp_path / "x.tar", [(f"{name}.png", encoded(0)), (f"{name}.txt", b"text")])
    assert index_tar(path)[0].column("line_id").to_pylist() == ["z?ro"]


def test_cut_anywhere_gives_the_whole_samples_before(tmp_path: Path) -> None:
    path = three(tmp_path / "x.tar")
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [member.offset_data + member.size for member in tar][1::2]
    for keep in [*range(600, len(content), 467), *ends, *(end - 1 for end in ends)]:
        path.write_bytes(content[:keep])
        batch, problems = index_tar(path)
        whole = sum(end <= keep for end in ends)
        assert batch.column("text").to_pylist() == [f"text {i}" for i in range(whole)], keep
        if keep < -(-ends[-1] // 512) * 512:
            assert "cut short" in problems[-1], keep


def test_header_damaged_in_the_middle_is_noticed(tmp_path: Path) -> None:
    """tarfile takes such a block for the end, and the lines after it would be lost without a word."""
    path = three(tmp_path / "x.tar")
    with tarfile.open(path) as tar:
        place = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[place : place + 100] = b"\xff" * 100
    path.write_bytes(content)
    batch, problems = index_tar(path)
    assert batch.column("text").to_pylist() == ["text 0"]
    assert f"byte {place}" in problems[0]


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_tar_is_refused_with_the_way_out(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, f"w:{compression}"):  # type: ignore[call-overload]
        pass
    with pytest.raises(InputError, match=r"compressed.*unpack"):
        index_tar(path)


@pytest.mark.parametrize("content", [b"", b"no tar" * 500])
def test_file_that_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.tar is no tar"):
        index_tar(tmp_path / "x.tar")


def test_missing_tar_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        index_tar(tmp_path / "x.tar")
    with pytest.raises(InputError, match="folder"):
        index_tar(tmp_path)


def test_many_rows_are_packed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "_ROWS_HELD", 2)
    assert texts(three(tmp_path / "x.tar")) == ["text 0", "text 1", "text 2"]


def test_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    """The name of a member may be a member itself; its size is whatever the file says."""
    path = three(tmp_path / "x.tar")
    content = path.read_bytes()
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path.write_bytes(content[:-1024].rstrip(b"\0") + bytes(1024))
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + content)
    with pytest.raises(InputError, match="is no tar"):
        index_tar(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 8))
def test_flipped_bytes_never_crash(tmp_path: Path, seed: int, flips: int) -> None:
    path = three(tmp_path / "x.tar")
    content = bytearray(path.read_bytes())
    rng = random.Random(seed)
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for _ in range(flips):
        place = rng.choice([rng.randrange(len(content)), rng.choice(headers) + rng.randrange(512)])
        content[place] = rng.randrange(256)
    path.write_bytes(content)
    try:
        batch, _ = index_tar(path)
    except InputError:
        return
    for row in batch.to_pylist():
        assert 0 <= row["image_offset"] <= row["image_offset"] + row["image_bytes"] <= len(content)
