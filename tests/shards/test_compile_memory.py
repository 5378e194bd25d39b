"""Compiling needs as much memory for 400 large lines as for 20."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINE_BYTES = 100_000

SCRIPT = f"""
import os, re, sys
from pathlib import Path
from PIL import Image
from distrib.ground_truth.records import LineImage
from distrib.shards.compiling.compile import CompileJob, compile_dataset
from distrib.shards.compiling.compile_shards import compile_shards

def read(source, **options):
    for number in range(10):  # noise: its PNG is as large as its pixels
        image = Image.frombytes("L", (500, {LINE_BYTES // 500}), os.urandom({LINE_BYTES}))
        yield LineImage(source=source, line_id=str(number), text="text", image=image)

if __name__ == "__main__":
    pages, workers = int(sys.argv[1]), int(sys.argv[2])
    shard_format = sys.argv[4] if len(sys.argv) > 4 else None
    job = CompileJob(sources=[Path(f"{{n}}.xml") for n in range(pages)], output=Path(sys.argv[3]),
                     workers=workers, recordbatch_size=10, shard_format=shard_format, shard_size=30_000_000)
    (compile_shards if shard_format else compile_dataset)(job, read=read)
    # Not the peak that getrusage knows: there the process that started this one counts, too.
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024)
"""


def peak_bytes(tmp_path: Path, pages: int, workers: int, *shard_format: str) -> int:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    result = subprocess.run(
        [
            sys.executable,
            script,
            str(pages),
            str(workers),
            tmp_path / ("out" if shard_format else "out.arrow"),
            *shard_format,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, workers: int) -> None:
    """Growth with the data has killed jobs of people with large collections."""
    few, many = (peak_bytes(tmp_path, pages, workers) for pages in (2, 40))
    assert (tmp_path / "out.arrow").stat().st_size > 400 * LINE_BYTES
    assert many - few < 100 * LINE_BYTES


@pytest.mark.parametrize("shard_format", ["arrow", pytest.param("webdataset", marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_shards(tmp_path: Path, shard_format: str) -> None:
    """A shard is larger than the memory that a process may have on a shared node."""
    few, many = (peak_bytes(tmp_path, pages, 1, shard_format) for pages in (2, 40))
    assert many - few < 100 * LINE_BYTES
