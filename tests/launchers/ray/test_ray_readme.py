"""The README's commands for Ray: the weights of a local run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ...readme import blocks
from ..same_weights import assert_same_run, prepare_same
from .cluster import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray")]


def test_the_commands_of_the_readme_give_the_weights_of_a_local_run(
    cluster: RayCluster, line_images: list[Path], tmp_path: Path
) -> None:
    reference = prepare_same(tmp_path, line_images)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "RAY_API_SERVER_ADDRESS": cluster.dashboard}
    done = subprocess.run(
        ["sh", "-ec", "\n".join(blocks("sh", "On Ray"))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train on ray, done" in done.stdout
    assert_same_run(tmp_path / "ray-run", reference)
