"""One experiment file by `ray job submit -- ketos launch ray`: the weights that a local launch gives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..conftest import weights_of
from ..same_weights import assert_same_run
from .cluster import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.real, pytest.mark.slow, pytest.mark.xdist_group("ray")]


def test_a_submitted_launch_on_two_nodes_gives_the_local_weights(
    cluster: RayCluster, real_experiment: Path, local_weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--config", real_experiment, "launch", "ray", "--nodes", 2, "--", "train", "-o", run]
    job = cluster.submit([sys.executable, "-m", "distrib", *map(str, words)])
    assert cluster.wait_for_job(job) == "SUCCEEDED", cluster.logs(job)
    assert_same_run(run, weights_of(run), local_weights)
