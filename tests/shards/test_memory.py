"""Training on much data begins as soon, and needs as much memory, as training on little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FORMS = ["arrow", "webdataset", "file"]
MORE_MIB = 60

READ_ALL = """
import os, sys
from pathlib import Path
os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from PIL import Image
from delivery import batches_of, reader_of
from distrib.shards.compiling.arrow_writer import PackedLine
from distrib.shards.png import encode_png
from repeated import write_file, write_folder

folder, form = Path(sys.argv[2]), sys.argv[3]

def resident():
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return sum(int(rows[field].split()[0]) for field in ("RssAnon", "RssFile")) >> 10

# Noise: an image is as large as its pixels, 100 kB.
png = encode_png(Image.frombytes("L", (850, 120), os.urandom(850 * 120)))
line = PackedLine(
    text="text", png=png, source="p.xml", line_id="l", width=850, height=120, mode="L", columns=850
)

def held_after_reading(name, size):
    target = folder / name
    if form == "file":
        dataset = write_file(target.with_suffix(".arrow"), [line], size)
    else:
        dataset = write_folder(target, [line], size, form)
    reader = reader_of(dataset, "baselines")
    for batch in batches_of(reader):
        assert len(reader(batch).lines) == len(batch)
    return resident()

small = held_after_reading("small", 10 << 20)
print(held_after_reading("large", 150 << 20) - small)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_reading_every_line_keeps_none(form: str, tmp_path: Path) -> None:
    """Fails if what was read stays resident, as the pages of a mapped shard would: 150 MB are read."""
    words = [sys.executable, "-c", READ_ALL, str(BENCHMARKS), str(tmp_path), form]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= MORE_MIB


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrow", "webdataset"])
def test_training_on_much_data_takes_no_more_memory(form: str, tmp_path: Path) -> None:
    """Fails if preparing a run reads or keeps images: of 300 MB as much is resident as of 10 MB. A single
    file is one shard: it is mapped as those are."""
    words = ["--size", "300M", "--steps", "20", "--repeat", "1", "--forms", form, "--json"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "scale.py", *words, "--scratch", tmp_path, "--data", tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[form]
    # Widths are drawn from more lines, so a wider batch may come; images kept would be 290 MiB.
    assert found["large_resident"] <= found["small_resident"] + 2 * MORE_MIB
    # Far above what it takes, so that a busy machine does not fail it, and far below reading the images.
    assert found["large_seconds"] < 15
    assert not list(tmp_path.iterdir())
