"""Lines, images and data sets small enough to make for every test."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
from distrib.shards.dataset import open_dataset
from distrib.shards.index import IndexEntry
from distrib.shards.png import decode_png, encode_png
from distrib.shards.storage import ShardStorage


def make_image(seed: int, mode: str = "L", size: tuple[int, int] | None = None) -> Image.Image:
    rng = np.random.Generator(np.random.Philox(seed))
    width, height = size or (int(rng.integers(20, 90)), int(rng.integers(10, 30)))
    pixels = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def make_line(number: int, text: str | None = None, mode: str = "L", **changes: object) -> PackedLine:
    image = make_image(number, mode)
    values: dict[str, object] = {
        "text": f"line {number}" if text is None else text,
        "png": encode_png(image),
        "source": f"page{number // 3}.xml",
        "line_id": f"l{number}",
        "width": image.width,
        "height": image.height,
        "mode": mode,
    }
    return PackedLine(**{**values, **changes})  # type: ignore[arg-type]


class ReadBack:
    """A shard file opened as any reader opens it: what it says of its lines, and the lines in order."""

    def __init__(self, path: Path) -> None:
        self._storage = ShardStorage()
        self.dataset = open_dataset(path, self._storage)
        self.index = self.dataset.index

    def __len__(self) -> int:
        return len(self.dataset)

    def texts(self) -> list[str]:
        return [text for _, texts, _ in self.index.text_chunks() for text in texts]

    def entries(self) -> list[IndexEntry]:
        return [self.index.entry(line) for line in range(len(self))]

    def png(self, line: int) -> bytes:
        entry = self.index.entry(line)
        png = self._storage.read(self.dataset.shards[entry.shard].address, entry.offset, entry.size)
        assert zlib.crc32(png) == entry.crc
        return png

    def image(self, line: int) -> Image.Image:
        return decode_png(self.png(line))


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes lines to a data set in the test's folder and returns its path."""

    def write_lines(lines: Iterable[PackedLine], name: str = "data.arrow", **options: object) -> Path:
        path = tmp_path / name
        with ArrowWriter(path, **{"line_type": "bbox", **options}) as writer:  # type: ignore[arg-type]
            for line in lines:
                writer.add(line)
        return path

    return write_lines


@pytest.fixture
def line_pairs(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Makes that many line images with transcriptions and returns the images' paths."""

    def make_pairs(count: int) -> list[Path]:
        folder = tmp_path / "pairs"
        folder.mkdir(exist_ok=True)
        paths = []
        for number in range(count):
            path = folder / f"{number:04d}.png"
            make_image(number).save(path)
            path.with_suffix(".gt.txt").write_text(f"pair {number}", encoding="utf-8")
            paths.append(path)
        return paths

    return make_pairs
