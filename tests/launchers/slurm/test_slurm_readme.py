"""The README's commands for SLURM: by launch and by template, the weights of a local run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ...readme import blocks
from ..same_weights import assert_same_run, prepare_same
from .cluster import Cluster, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def test_the_commands_of_the_readme_give_the_weights_of_a_local_run(
    cluster: Cluster, line_images: list[Path], tmp_path: Path
) -> None:
    reference = prepare_same(tmp_path, line_images)
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    environment = {**cluster.environment, "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(script: str) -> str:
        words = ["sh", "-ec", script]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=400
        )
        assert done.returncode == 0, done.stdout + done.stderr + cluster.told()
        return done.stdout

    printed = run("\n".join(blocks("sh", "On SLURM")))
    assert "done" in printed
    wait_until((tmp_path / "slurm-run" / "launch").exists, seconds=60, of="the job of the template")
    assert "done" in run("ketos launch wait slurm-run")
    for name in ("big", "slurm-run"):
        assert_same_run(tmp_path / name, reference)
