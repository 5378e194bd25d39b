"""A small data set and an experiment whose epochs take a second, for launches of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.ground_truth.sample import write_sample

from ..conftest import SHARED

EXPERIMENT = """
num_workers: 1
train:
  spec: '[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16]'
  format_type: binary
  batch_size: 2
  global_batch_size: 4
  quit: fixed
  epochs: 2
  save_steps: 2
"""


@pytest.fixture(scope="session")
def launch_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sample ground truth: 24 line pairs, 4 pages."""
    directory = tmp_path_factory.mktemp("launch-ground-truth") / "sample"
    write_sample(directory, pairs=24, pages=4)
    return directory


@pytest.fixture(scope="session")
def launch_lines(launch_pages: Path) -> Path:
    """The line pairs, compiled into one file."""
    output = launch_pages.parent / "lines.arrow"
    words = ["--workers", "0", "compile", "-f", "path", "-o", str(output)]
    lines = sorted(map(str, (launch_pages / "lines").glob("*.png")))
    subprocess.run([sys.executable, "-m", "distrib", *words, *lines], check=True, capture_output=True)
    return output


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment file for a network that learns nothing, quickly."""
    path = tmp_path / "experiment.yml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def line_images(launch_pages: Path) -> list[Path]:
    """Images of 40 real lines with their text beside them where they are to be had, else of drawn ones."""
    real = sorted((SHARED / "data" / "fraktur-lines").glob("*.png"))[:40]
    if not real and "real" in os.environ.get("KETOS_TESTS_REQUIRE", "").split():
        pytest.fail("no real lines beside this checkout, and tests with them must run here")
    return real or sorted((launch_pages / "lines").glob("*.png"))
