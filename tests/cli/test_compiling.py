"""Ground truth that several processes share is compiled by one of them, for as long as it takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

WORKER = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
from distrib.cli import compiling
from distrib.runtime import processes as module
from distrib.runtime.topology import topology_of

COLLECTIVES = 3.0
module.TIMEOUT = timedelta(seconds=COLLECTIVES)
compile_at_once = compiling.compile_with_progress

def compile_slowly(job):
    time.sleep(COLLECTIVES + 1.5)
    return compile_at_once(job)

compiling.compile_with_progress = compile_slowly
with module.joined(topology_of(os.environ), device="cpu") as processes:
    collection = compiling.open_data(
        arguments=[sys.argv[1]], manifests=[], format_type="path", linetype=None, legacy_polygons=False,
        workers=0, compiled=Path(sys.argv[2]), storage=compiling.open_storage(None, "1GB"),
        processes=processes,
    )
    print(len(collection), flush=True)
"""


@pytest.mark.slow
def test_a_job_may_compile_for_longer_than_a_collective_waits(tmp_path: Path) -> None:
    """Broken: training from much ground truth with several processes ends while it compiles, every time."""
    image = tmp_path / "line.png"
    Image.new("L", (80, 20), 200).save(image)
    image.with_suffix(".gt.txt").write_text("text")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, image, tmp_path / "data.arrow"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (out, err) in zip(started, printed, strict=True):
        assert process.returncode == 0, err
        assert out.splitlines()[-1] == "1"
