"""One experiment file by `ketos launch slurm` and by the template: the weights that a local launch gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import weights_of
from ..same_weights import assert_same_run
from .cluster import Cluster
from .runs import ketos

pytestmark = [pytest.mark.slurm, pytest.mark.real, pytest.mark.slow, pytest.mark.xdist_group("slurm")]

TEMPLATES = Path(__file__).resolve().parents[3] / "slurm"


def test_a_launch_on_two_nodes_gives_the_local_weights(
    cluster: Cluster, real_experiment: Path, local_weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--config", real_experiment, "launch", "slurm", "--nodes", 2, "--wait", "--", "train", "-o", run]
    ketos(cluster, *words)
    assert_same_run(run, weights_of(run), local_weights)


def test_the_template_gives_the_local_weights(
    cluster: Cluster, real_experiment: Path, local_weights: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    resources = ["--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", "--wait"]
    words = ["sbatch", *resources, str(TEMPLATES / "train.sbatch"), str(real_experiment), "-o", str(run)]
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    environment = {**cluster.environment, "PATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(words, check=True, capture_output=True, cwd=tmp_path, env=environment, timeout=120)
    assert_same_run(run, weights_of(run), local_weights)
