"""The commands that the README has for Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ...readme import blocks, prepare
from .cluster import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray")]


def test_the_commands_of_the_readme_run(cluster: RayCluster, launch_pages: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "RAY_API_SERVER_ADDRESS": cluster.dashboard}
    compile_ = "ketos compile -f path --shard-format arrow --height 16 -o shards"
    script = "\n".join([f"{compile_} {launch_pages}/lines/*.png", *blocks("sh", "On Ray")])
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train on ray, done" in done.stdout
    assert list((tmp_path / "ray-run").glob("best_*.safetensors"))
