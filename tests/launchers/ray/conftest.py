"""A Ray cluster of two machines for the whole session, and lines to train on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distrib.ground_truth.sample import write_sample

from .cluster import RayCluster, new_cluster, require_ray


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[RayCluster]:
    """A head and a second node."""
    require_ray()
    started = new_cluster(2)
    yield started
    started.close()


@pytest.fixture
def cluster(session_cluster: RayCluster) -> RayCluster:
    """The cluster with both nodes, whatever the test before has done to it."""
    session_cluster.restore()
    return session_cluster


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The images of 64 line pairs."""
    folder = tmp_path_factory.mktemp("ground-truth") / "sample"
    write_sample(folder, pairs=64, pages=0)
    return sorted((folder / "lines").glob("*.png"))


@pytest.fixture(scope="session")
def lines(pairs: list[Path]) -> Path:
    """The line pairs, compiled."""
    output = pairs[0].parents[1] / "lines.arrow"
    words = [sys.executable, "-m", "distrib", "--workers", "0", "compile", "-f", "path", "-o", output, *pairs]
    subprocess.run([str(word) for word in words], check=True, capture_output=True, env=os.environ)
    return output
