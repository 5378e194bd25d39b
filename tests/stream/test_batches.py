"""Batches of lines as they lie in shards: those that cannot be read are left out, named, and alone."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.text import TextPipeline
from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
from distrib.shards.compiling.tar_writer import TarWriter
from distrib.shards.png import encode_png
from distrib.stream.batches import BatchReader, LineBatch
from distrib.stream.line_cache import LineCache
from distrib.stream.lines import LineCollection, open_collection

HEIGHT = 16
TEXTS = ["a", "bc", "", "abc", "cab", "b"]


def packed(number: int, text: str, *, height: int) -> PackedLine:
    """Line ``number``: width and strokes of its own."""
    pixels = np.full((height, 30 + 7 * number), 255, dtype=np.uint8)
    pixels[3:9, 4 + number :: 5] = 40 * (number % 5)
    image = Image.fromarray(pixels)
    return PackedLine(
        text=text,
        png=encode_png(image),
        source="page.xml",
        line_id=f"l{number}",
        width=image.width,
        height=image.height,
        mode="L",
    )


def written(path: Path, *, normalized: bool) -> Path:
    """A shard of the lines, of the kind that its name says."""
    height = HEIGHT if normalized else 24
    options = {"line_type": "bbox", "normalized": normalized, "height": HEIGHT if normalized else 0}
    lines = [packed(number, text, height=height) for number, text in enumerate(TEXTS)]
    if path.suffix == ".arrow":
        with ArrowWriter(path, **options) as writer:  # type: ignore[arg-type]
            for line in lines:
                writer.add(line)
        return path
    with TarWriter(path, **options) as tar:  # type: ignore[arg-type]
        for number, line in enumerate(lines):
            tar.add(line, f"{number:04d}")
    return path


def reader(collection: LineCollection, cache: LineCache | None = None, *, channels: int = 1) -> BatchReader:
    return BatchReader(
        collection=collection,
        network_input=NetworkInput(
            height=HEIGHT, width=0, channels=channels, one_channel_mode="L", pad=2, centerline=False
        ),
        text_pipeline=TextPipeline(
            normalization=None, normalize_whitespace=True, reorder=False, base_dir="auto"
        ),
        encode=lambda text: [ord(character) - 96 for character in text],
        steps_needed=len,
        cache=cache,
    )


def flip(path: Path, collection: LineCollection, line: int) -> None:
    entry = collection.datasets[0].index.entry(line)
    data = bytearray(path.read_bytes())
    data[entry.offset + entry.size // 2] ^= 1
    path.write_bytes(data)


def equal(one: LineBatch, other: LineBatch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(params=["arrow", "tar"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path / f"lines.{request.param}", normalized=True)


def test_a_batch_is_its_lines_padded_on_the_right_and_encoded(shard: Path) -> None:
    collection = open_collection([shard])
    read = reader(collection)
    batch = read(np.array([4, 0, 3]))
    assert batch.lines.tolist() == [4, 0, 3]
    assert batch.texts == ["cab", "a", "abc"]
    assert batch.labels.tolist() == [3, 1, 2, 1, 1, 2, 3]
    assert batch.label_lengths.tolist() == batch.required_steps.tolist() == [3, 1, 3]
    assert not batch.bad
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (3, 1, HEIGHT, int(batch.widths.max()))
    for slot, line in enumerate([4, 0, 3]):
        width = int(batch.widths[slot])
        alone = read.network_input(collection.record(line).image(), normalized_height=HEIGHT)
        assert np.array_equal(batch.images[slot, :, :, :width].numpy(), alone)
        assert not batch.images[slot, :, :, width:].any()


def test_a_damaged_line_is_named_and_the_others_come_unchanged(shard: Path) -> None:
    """Nothing takes its place, and no other line of the batch is lost with it."""
    collection = open_collection([shard])
    flip(shard, collection, 3)
    read = reader(collection)
    batch = read(np.array([4, 3, 0]))
    (bad,) = batch.bad
    assert bad.line == 3
    assert bad.reason.startswith("unreadable: ")
    assert "l3" in bad.reason
    assert shard.name in bad.reason
    assert equal(batch._replace(bad=[]), read(np.array([4, 0])))


def test_an_image_that_was_stored_broken_is_a_bad_line_too(tmp_path: Path) -> None:
    """Its checksum is right: it was no image when it was compiled."""
    whole = packed(0, "a", height=HEIGHT)
    path = tmp_path / "lines.arrow"
    with ArrowWriter(path, line_type="bbox", normalized=True, height=HEIGHT) as writer:
        writer.add(whole)
        for png in (whole.png[: len(whole.png) // 2], b"\x89PNG\r\n\x1a\n", b"no image at all"):
            writer.add(replace(whole, png=png))
    batch = reader(open_collection([path]))(np.arange(4))
    assert batch.lines.tolist() == [0]
    assert [bad.line for bad in batch.bad] == [1, 2, 3]


def test_a_shard_that_was_cut_gives_the_lines_before_the_cut(shard: Path) -> None:
    collection = open_collection([shard])
    entry = collection.datasets[0].index.entry(2)
    with shard.open("r+b") as file:
        file.truncate(entry.offset + entry.size)
    batch = reader(collection)(np.arange(len(TEXTS)))
    assert batch.lines.tolist() == [0, 1, 2]
    assert [bad.line for bad in batch.bad] == [3, 4, 5]
    assert "cut short" in batch.bad[0].reason


def test_a_deleted_shard_is_read_on_where_it_is_open_and_bad_where_it_is_not(shard: Path) -> None:
    collection = open_collection([shard])
    read = reader(collection)
    before = read(np.array([1]))
    unopened = reader(pickle.loads(pickle.dumps(collection)))
    shard.unlink()
    assert equal(read(np.array([1])), before)
    batch = unopened(np.array([1, 2]))
    assert not len(batch.lines)
    assert [bad.line for bad in batch.bad] == [1, 2]
    assert "does not exist (any more)" in batch.bad[0].reason


def test_a_batch_of_nothing_or_of_bad_lines_only_is_empty_and_whole(shard: Path) -> None:
    """Processes with an empty slice of a step get such batches."""
    collection = open_collection([shard])
    shard.unlink()
    for lines in (np.empty(0, dtype=np.int64), np.array([0, 1])):
        batch = reader(collection)(lines)
        assert batch.images.shape[0] == 0
        assert all(not len(part) for part in (batch.widths, batch.labels, batch.label_lengths, batch.lines))
        assert len(batch.bad) == len(lines)


def test_selecting_lines_keeps_what_belongs_to_them(shard: Path) -> None:
    batch = reader(open_collection([shard]))(np.array([0, 1, 2, 3]))
    chosen = batch.select(torch.tensor([False, True, True, False]))
    assert chosen.lines.tolist() == [1, 2]
    assert chosen.texts == ["bc", ""]
    assert chosen.labels.tolist() == [2, 3]
    assert chosen.label_lengths.tolist() == [2, 0]
    assert torch.equal(chosen.images, batch.images[1:3])
    assert torch.equal(chosen.widths, batch.widths[1:3])


def test_colour_and_grey_networks_get_the_channels_they_ask_for(shard: Path) -> None:
    for channels in (1, 3):
        assert reader(open_collection([shard]), channels=channels)(np.arange(2)).images.shape[1] == channels


@pytest.mark.parametrize("suffix", ["arrow", "tar"])
def test_raw_lines_come_from_the_cache_as_they_were_made(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch no line is straightened or scaled again, and none is another one."""
    collection = open_collection([written(tmp_path / f"raw.{suffix}", normalized=False)])
    lines = np.arange(len(TEXTS))
    plain = reader(collection)(lines)
    read = reader(collection, LineCache(tmp_path / "cache", "digest", 1 << 20))
    assert equal(read(lines), plain)
    monkeypatch.setattr(NetworkInput, "__call__", lambda *_, **__: pytest.fail("made again"))
    assert equal(read(lines), plain)


def test_a_line_that_changed_on_its_disk_is_bad_though_it_is_in_the_cache(tmp_path: Path) -> None:
    path = written(tmp_path / "raw.arrow", normalized=False)
    collection = open_collection([path])
    read = reader(collection, LineCache(tmp_path / "cache", "digest", 1 << 20))
    read(np.arange(3))
    flip(path, collection, 1)
    assert [bad.line for bad in read(np.arange(3)).bad] == [1]
