"""Line images of real pages equal kraken's, pixel for pixel."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from distrib.ground_truth.reader import read_line_images
from distrib.ground_truth.records import FormatType, LineImage


def recorded(oracle_dir: Path, name: str) -> list[dict[str, Any]]:
    with pa.memory_map(str(oracle_dir / f"{name}.arrow")) as source:
        records: list[dict[str, Any]] = pa.ipc.open_file(source).read_all()["lines"].to_pylist()
    return records


def ours(oracle_dir: Path, real_data: Path, name: FormatType) -> list[LineImage]:
    files = json.loads((oracle_dir / f"{name}.files.json").read_text())
    found = [next(real_data.rglob(file)) for file in files]
    lines = [line for file in found for line in read_line_images(file, format_type=name)]
    return [line for line in lines if isinstance(line, LineImage)]


@pytest.mark.oracle
@pytest.mark.real
@pytest.mark.parametrize("name", ["alto", "page"])
def test_extracted_lines_equal_those_recorded(oracle_dir: Path, real_data: Path, name: FormatType) -> None:
    expected = recorded(oracle_dir, name)
    actual = ours(oracle_dir, real_data, name)
    assert [line.text for line in actual] == [record["text"] for record in expected]
    for line, record in zip(actual, expected, strict=True):
        image = np.asarray(Image.open(io.BytesIO(record["im"])), dtype=int)
        pixels = np.asarray(line.image, dtype=int)
        assert pixels.shape == image.shape, line.line_id
        # Exact with pillow 10 to 13; one level is left to other versions' rounding.
        assert np.abs(pixels - image).mean() < 0.5, line.line_id


# Width, height and mean of lines as kraken 7.1.1 extracts them with its legacy polygon extractor.
LEGACY_LINES = {
    ("f11.xml", "line_0"): (276, 75, 168.19),
    ("f11.xml", "line_6"): (1045, 106, 133.90),
    ("f11.xml", "line_12"): (1013, 109, 134.90),
    ("f11.xml", "line_18"): (1022, 107, 143.08),
    ("f18.xml", "line_1"): (725, 89, 189.98),
    ("f18.xml", "line_7"): (729, 95, 185.41),
    ("f18.xml", "line_13"): (682, 88, 181.37),
    ("f18.xml", "line_19"): (669, 109, 165.17),
    ("f18.xml", "line_25"): (869, 109, 152.66),
    ("f18.xml", "line_29"): (67, 106, 171.11),
    ("IMG_20190620_123602.page.xml", "r5l1"): (1476, 123, 107.64),
    ("IMG_20190620_123602.page.xml", "r5l7"): (1423, 74, 136.09),
    ("IMG_20190620_123602.page.xml", "r5l14"): (571, 69, 143.88),
    ("IMG_20190620_123602.page.xml", "r5l20"): (1468, 75, 113.06),
    ("IMG_20190620_123602.page.xml", "r5l26"): (1549, 87, 101.71),
    ("IMG_20190620_123602.page.xml", "r5l32"): (1501, 89, 89.15),
}


@pytest.mark.real
def test_legacy_lines_equal_those_recorded(real_data: Path) -> None:
    """Models trained before kraken 5 read lines made in the old way, its quirks on grey pages included."""
    files = [
        real_data / "print16-alto" / "bpt6k1514025q" / "f11.xml",
        real_data / "print16-alto" / "bpt6k70048d" / "f18.xml",
        real_data / "hand-fr-page-alto" / "IMG_20190620_123602.page.xml",
    ]
    seen = {
        (file.name, line.line_id): line.image
        for file in files
        for line in read_line_images(file, format_type="xml", legacy_polygons=True)
        if isinstance(line, LineImage)
    }
    for key, (width, height, mean) in LEGACY_LINES.items():
        assert seen[key].size == (width, height), key
        assert abs(np.asarray(seen[key]).mean() - mean) < 0.1, key
