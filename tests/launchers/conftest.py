"""A small data set and an experiment whose epochs take a second, for launches of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.ground_truth.sample import write_sample

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


REAL_EXPERIMENT = """
device: cpu
num_workers: 0
train:
  spec: '[1,32,0,1 Cr3,7,16 Mp4,4 S1(1x0)1,3 Lbx32 Do0.3]'
  format_type: binary
  batch_size: 4
  global_batch_size: 8
  quit: fixed
  epochs: 3
  ground_truth: ['{lines}']
"""


@pytest.fixture(scope="session")
def real_experiment(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One experiment file on 40 real lines, for every target."""
    folder = tmp_path_factory.mktemp("real")
    lines, experiment = folder / "lines.arrow", folder / "experiment.yml"
    images = sorted(map(str, (real_data / "fraktur-lines").glob("*.png")))[:40]
    words = ["--workers", "0", "compile", "-f", "path", "-o", str(lines), *images]
    subprocess.run([sys.executable, "-m", "distrib", *words], check=True, capture_output=True)
    experiment.write_text(REAL_EXPERIMENT.format(lines=lines), encoding="utf-8")
    return experiment


@pytest.fixture(scope="session")
def local_weights(real_experiment: Path) -> Path:
    """The weights file of that experiment, trained by two processes of this machine."""
    run = real_experiment.parent / "local"
    launch = ["launch", "local", "--procs-per-node", "2", "--", "train", "-o", str(run)]
    words = [sys.executable, "-m", "distrib", "--config", str(real_experiment), *launch]
    subprocess.run(words, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return weights_of(run)


def weights_of(run: Path) -> Path:
    """The exported weights file of a run."""
    (weights,) = run.glob("best_*.safetensors")
    return weights
