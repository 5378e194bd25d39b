"""The commands that the README has for SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ...readme import blocks, prepare
from .cluster import Cluster, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def test_the_commands_of_the_readme_run(cluster: Cluster, launch_pages: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    environment = {**cluster.environment, "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(script: str) -> str:
        words = ["sh", "-ec", script]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=200
        )
        assert done.returncode == 0, done.stdout + done.stderr + cluster.told()
        return done.stdout

    compile_ = "ketos compile -f path --shard-format arrow --height 16 -o shards"
    run(f"{compile_} {launch_pages}/lines/*.png")
    printed = run("\n".join(blocks("sh", "On SLURM")))
    assert "done" in printed
    wait_until((tmp_path / "slurm-run" / "launch").exists, seconds=60, of="the job of the template")
    assert "done" in run("ketos launch wait slurm-run")
    for name in ("big", "slurm-run"):
        assert list((tmp_path / name).glob("best_*.safetensors")), name
