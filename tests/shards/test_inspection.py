"""What is said about data sets is true, and nothing that is damaged passes for whole."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth.network_input import NetworkInput, normalized_line
from distrib.shards.arrow_index import index_arrow
from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
from distrib.shards.compiling.tar_writer import TarWriter
from distrib.shards.dataset import Dataset, open_dataset
from distrib.shards.index import write_index
from distrib.shards.inspection import PERCENTILES, DatasetFacts, Inspector, Lengths, Network
from distrib.shards.manifest import (
    DatasetManifest,
    ManifestIndex,
    ManifestShard,
    checksum_of,
    write_manifest,
)
from distrib.shards.png import encode_png
from distrib.shards.storage import ShardStorage
from distrib.shards.tar_index import index_tar
from distrib.shards.verification import Damage, verify, verify_index, verify_tasks

from .conftest import Write, make_line

Format = Literal["arrow", "webdataset"]
FORMATS: tuple[Format, Format] = ("arrow", "webdataset")


def write_tar(path: Path, lines: Sequence[PackedLine]) -> Path:
    with TarWriter(path, line_type="baselines") as writer:
        for number, line in enumerate(lines):
            writer.add(line, f"{number:06d}")
    return path


def write_folder(folder: Path, shards: Sequence[Sequence[PackedLine]], shard_format: Format) -> Path:
    """A data set of shards with its index and dataset.json."""
    folder.mkdir()
    batches, entries = [], []
    for number, lines in enumerate(shards):
        path = folder / f"{number:04d}.{'tar' if shard_format == 'webdataset' else 'arrow'}"
        if shard_format == "webdataset":
            batches.append(index_tar(write_tar(path, lines))[0])
        else:
            with ArrowWriter(path, line_type="baselines") as writer:
                for line in lines:
                    writer.add(line)
            batches.append(index_arrow(path))
        size = path.stat().st_size
        entries.append(
            ManifestShard(name=path.name, lines=len(lines), bytes=size, checksum=checksum_of(path))
        )
    index = folder / "index.arrow"
    write_index(index, batches)
    every = list(chain.from_iterable(shards))
    manifest = DatasetManifest(
        format=shard_format,
        line_type="baselines",
        im_mode="L",
        source_mode="L",
        legacy_polygons=False,
        height=0,
        normalized=False,
        lines=len(every),
        characters=sum(len(line.text) for line in every),
        alphabet=dict(Counter("".join(line.text for line in every))),
        languages=dict(Counter(language for line in every for language in line.languages)),
        shards=tuple(entries),
        index=ManifestIndex(name=index.name, bytes=index.stat().st_size, checksum=checksum_of(index)),
    )
    write_manifest(folder / "dataset.json", manifest)
    return folder


def opened(path: Path) -> Dataset:
    return open_dataset(str(path), ShardStorage(None))


def network(height: int = 16, pad: int = 0, divisor: int = 4, centerline: bool = True) -> Network:
    def output_width(widths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return widths // divisor

    return Network(
        network_input=NetworkInput(height=height, pad=pad, centerline=centerline), output_width=output_width
    )


def facts_of(*paths: Path, wanted: Network | None = None) -> tuple[list[DatasetFacts], DatasetFacts]:
    inspector = Inspector(wanted or network())
    return [inspector.add(opened(path)) for path in paths], inspector.total()


def damages_of(path: Path) -> list[Damage]:
    """What verifying finds, each task sent through pickle as to another process."""
    tasks = verify_tasks(opened(path), ShardStorage(None))
    return [damage for task in tasks for damage in verify(pickle.loads(pickle.dumps(task)))]


def flip(path: Path, needle: bytes, shift: int = 0) -> None:
    """Change one byte of a file, that many after where ``needle`` begins."""
    content = bytearray(path.read_bytes())
    content[content.index(needle) + shift] ^= 0xFF
    path.write_bytes(content)


LINES = [
    make_line(0, "Äpfel und", languages=("deu",), split="train"),
    make_line(1, "", languages=("lat",), split="validation"),
    make_line(2, "  ", split="test"),
    make_line(3, "aab\u0301"),
    make_line(4, "a\0c"),
]


@pytest.mark.parametrize("shard_format", FORMATS)
def test_facts_are_those_of_the_lines(tmp_path: Path, shard_format: Format) -> None:
    folder = write_folder(tmp_path / "data", [LINES[:2], LINES[2:3], LINES[3:]], shard_format)
    (facts,), total = facts_of(folder)
    assert (facts.lines, facts.empty, facts.shards) == (5, 2, 3)
    assert facts.bytes == sum(path.stat().st_size for path in folder.glob("0*"))
    assert facts.alphabet == Counter("".join(line.text for line in LINES))
    assert facts.characters == 18
    assert facts.splits == {"none": 2, "train": 1, "validation": 1, "test": 1}
    assert facts.languages == {"deu": 1, "lat": 1}
    assert (facts.line_type, facts.im_mode) == (("baselines",), ("L",))
    assert facts.widths.percentiles()[0] == min(line.width for line in LINES)
    assert facts.heights.percentiles()[100] == max(line.height for line in LINES)
    assert (facts.same_key, facts.same_content) == (0, 0)
    assert total.alphabet == facts.alphabet
    assert (total.lines, total.splits, total.problems) == (facts.lines, facts.splits, [])


def test_duplicates_are_counted_within_and_between_data_sets(write: Write) -> None:
    """Lines that stand in training and validation data make a model look better than it is."""
    twice = make_line(7, "twice")
    same_content = make_line(7, "twice", source="other.xml")
    first = write([make_line(0), twice, twice], "first.arrow")
    second = write([same_content, make_line(1), twice], "second.arrow")
    (one, two), total = facts_of(first, second)
    assert (one.same_key, one.same_content) == (1, 1)
    assert (two.same_key, two.same_content) == (0, 1)
    assert (total.same_key, total.same_content) == (2, 3)


def test_equal_texts_or_equal_images_alone_are_no_duplicates(write: Write) -> None:
    lines = [make_line(0, "a"), make_line(0, "b", line_id="m"), make_line(1, "a")]
    _, total = facts_of(write(lines))
    assert (total.same_key, total.same_content) == (0, 0)


def plain(number: int, text: str, width: int, **changes: object) -> PackedLine:
    """A line image of 16 pixels' height with some ink."""
    pixels = np.full((16, width), 255, dtype=np.uint8)
    pixels[4:12:2] = 0
    image = Image.fromarray(pixels)
    return make_line(number, text, png=encode_png(image), width=width, height=16, **changes)


def test_lines_are_too_narrow_where_ctc_says_so(write: Write) -> None:
    """Five labels and a repetition need six steps: 24 columns of a network that takes four at a time."""
    lines = [plain(0, "abcde", 20), plain(1, "abcde", 19), plain(2, "abccd", 23), plain(3, "abccd", 24)]
    (facts,), _ = facts_of(write(lines, line_type="baselines"))
    assert (facts.narrow, facts.narrow_estimated, facts.estimated) == (2, 0, 0)
    assert [(each.line, each.steps, each.needed) for each in facts.examples] == [(1, 4, 5), (2, 5, 6)]
    assert facts.examples[0].source == "page0.xml"
    (facts,), _ = facts_of(write(lines, line_type="baselines"), wanted=network(pad=2))
    assert facts.narrow == 0


def test_widths_of_boxes_are_estimates_unless_the_index_knows(write: Write) -> None:
    """They are straightened, after which most are half as wide or less; some are not."""
    raw = [plain(number, "abc", 48) for number in range(3)]
    (facts,), _ = facts_of(write(raw, "raw.arrow"))
    assert (facts.estimated, facts.input_widths.percentiles()[50]) == (3, 24)
    known = [plain(number, "abc", 48, columns=30 + number) for number in range(3)]
    (facts,), _ = facts_of(write(known, "known.arrow", height=16), wanted=network(pad=4))
    assert (facts.estimated, facts.input_widths.percentiles()[0]) == (0, 38)
    (facts,), _ = facts_of(write(known, "known.arrow", height=16), wanted=network(height=32))
    assert facts.estimated == 3


def test_widths_of_normalised_lines_are_exact(write: Write) -> None:
    image = normalized_line(
        Image.fromarray(np.eye(40, 200, dtype=np.uint8) * 255), height=16, centerline=True
    )
    line = make_line(0, png=encode_png(image), width=image.width, height=16, columns=image.width)
    (facts,), _ = facts_of(write([line], height=16, normalized=True))
    assert (facts.normalized_height, facts.estimated) == ((16,), 0)
    assert facts.input_widths.percentiles()[50] == image.width


def test_an_image_without_a_header_is_neither_measured_nor_narrow(write: Write) -> None:
    lines = [make_line(0), make_line(1, "x" * 500, png=b"no image", width=0, height=0)]
    (facts,), _ = facts_of(write(lines, line_type="baselines"))
    assert (facts.unmeasured, facts.narrow) == (1, 0)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 3000), max_size=60), more=st.lists(st.integers(0, 30), max_size=9))
def test_percentiles_and_histograms_are_those_of_the_lengths(lengths: list[int], more: list[int]) -> None:
    found = Lengths.of(np.array(lengths, dtype=np.int32)) + Lengths.of(np.array(more, dtype=np.int32))
    known = [length for length in lengths + more if length]
    if not known:
        assert (found.percentiles(), found.histogram()) == ({}, [])
        return
    expected = np.percentile(known, PERCENTILES, method="inverted_cdf")
    assert found.percentiles() == dict(zip(PERCENTILES, expected.tolist(), strict=True))
    assert len(found.histogram()) <= 11
    for first, last, count in found.histogram():
        assert count == sum(first <= length <= last for length in known)
    assert sum(count for *_, count in found.histogram()) == len(known)


def test_a_header_that_lies_takes_no_memory() -> None:
    assert len(Lengths.of(np.array([2**31 - 1], dtype=np.int32)).counts) <= 2**20 + 1


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_whole_data_set_is_found_whole(tmp_path: Path, shard_format: Format) -> None:
    assert damages_of(write_folder(tmp_path / "data", [LINES[:2], LINES[2:3], LINES[3:]], shard_format)) == []


@pytest.mark.parametrize("suffix", [".arrow", ".tar"])
def test_a_whole_file_is_found_whole(tmp_path: Path, write: Write, suffix: str) -> None:
    path = write(LINES) if suffix == ".arrow" else write_tar(tmp_path / "data.tar", LINES)
    assert damages_of(path) == []


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_flipped_byte_of_an_image_is_found_with_its_line(tmp_path: Path, shard_format: Format) -> None:
    folder = write_folder(tmp_path / "data", [LINES[:2], LINES[2:]], shard_format)
    shard = next(folder.glob("0001.*"))
    flip(shard, LINES[3].png, 60)
    of_shard, of_line = damages_of(folder)
    assert of_shard.shard == str(shard)
    assert of_shard.line is None
    assert "checksum" in of_shard.reason
    assert (of_line.shard, of_line.line, of_line.line_id) == (str(shard), 3, "l3")
    assert of_line.source == "page1.xml"
    assert "checksum" in of_line.reason


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_flipped_byte_of_a_text_is_found_with_its_line(tmp_path: Path, shard_format: Format) -> None:
    """Images are checked in training; a text that has changed would teach the model something wrong."""
    folder = write_folder(tmp_path / "data", [LINES[:2], LINES[2:]], shard_format)
    shard = next(folder.glob("0000.*"))
    content = shard.read_bytes()
    assert content.count("Äpfel und".encode()) == 1
    shard.write_bytes(content.replace("Äpfel und".encode(), "Äpfel uns".encode()))
    of_shard, of_line = damages_of(folder)
    assert "checksum" in of_shard.reason
    assert of_line.line == 0
    assert "text" in of_line.reason


def test_bytes_that_belong_to_no_line_are_checked_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [LINES], "webdataset")
    flip(folder / "0000.tar", b"ketos")
    assert any("checksum" in damage.reason for damage in damages_of(folder))


@pytest.mark.parametrize("shard_format", FORMATS)
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_a_shard_that_is_not_all_there_is_found(tmp_path: Path, shard_format: Format, how: str) -> None:
    folder = write_folder(tmp_path / "data", [LINES[:2], LINES[2:]], shard_format)
    shard = next(folder.glob("0001.*"))
    content = shard.read_bytes()
    dataset = opened(folder)
    if how == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content[: content.index(LINES[4].png) + 20] if how == "cut" else b"")
    tasks = verify_tasks(dataset, ShardStorage(None))
    damages = [damage for task in tasks for damage in verify(task)]
    assert {damage.shard for damage in damages} == {str(shard)}
    assert damages[0].line is None
    lines = [damage.line for damage in damages if damage.line is not None]
    assert lines == {"missing": [], "cut": [4], "empty": [2, 3, 4]}[how]


def test_an_image_that_cannot_be_decoded_is_found_in_a_file_without_checksums(write: Write) -> None:
    """The file of another program may have been made with it."""
    lines = [make_line(0), make_line(1, png=b"\x89PNG\r\n\x1a\n nothing", width=9, height=9)]
    (damage,) = damages_of(write(lines))
    assert damage.line == 1
    assert "decoded" in damage.reason


def test_a_tar_cut_short_is_damaged_though_its_lines_can_be_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "data.tar", LINES)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(LINES[3].png) + 20])
    (damage,) = damages_of(path)
    assert damage.line is None
    assert "cut short" in damage.reason


def test_more_lines_than_one_task_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.shards.verification._LINES_PER_TASK", 2)
    folder = write_folder(tmp_path / "data", [LINES, LINES[:1]], "arrow")
    dataset = opened(folder)
    tasks = list(verify_tasks(dataset, ShardStorage(None)))
    assert [(task.shard, task.first, task.last, task.whole) for task in tasks] == [
        (0, 0, 2, True),
        (0, 2, 4, False),
        (0, 4, 5, False),
        (1, 5, 6, True),
    ]


def test_an_index_that_has_changed_is_found(tmp_path: Path) -> None:
    """What it says of a line that no check of images covers, its page for one, decides about splits."""
    folder = write_folder(tmp_path / "data", [LINES], "arrow")
    assert verify_index(opened(folder), ShardStorage(None)) == []
    flip(folder / "index.arrow", b"page0.xml")
    (damage,) = verify_index(opened(folder), ShardStorage(None))
    assert damage.shard == str(folder / "index.arrow")
    (folder / "index.arrow").unlink()
    (damage,) = verify_index(opened(folder), ShardStorage(None))
    assert "does not exist" in damage.reason


def test_shards_behind_an_address_are_verified(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    folder = write_folder(tmp_path / "data", [LINES[:2], LINES[2:]], "webdataset")
    flip(folder / "0001.tar", LINES[3].png, 60)
    for path in folder.iterdir():
        memory.pipe_file(f"/inspected/{path.name}", path.read_bytes())
    try:
        dataset = open_dataset("memory://inspected", ShardStorage(None))
        storage = ShardStorage(None)
        damages = [damage for task in verify_tasks(dataset, storage) for damage in verify(task)]
        assert [damage.line for damage in damages] == [None, 3]
        assert all(damage.shard == "memory://inspected/0001.tar" for damage in damages)
    finally:
        memory.rm("/inspected", recursive=True)
