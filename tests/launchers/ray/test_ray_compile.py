"""A data set compiled by two machines of a cluster is the one that two processes compile here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cluster import RayCluster


def _ketos(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "distrib", "--workers", "0", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_compile_on_two_machines_gives_the_data_set_of_one_machine(
    cluster: RayCluster, pairs: list[Path], tmp_path: Path
) -> None:
    """Shards, order and checksums must not depend on who wrote them."""

    def words(output: Path) -> list[object]:
        return [
            "compile",
            "-f",
            "path",
            "--shard-format",
            "arrow",
            "--shard-size",
            "64K",
            "-o",
            output,
            *pairs,
        ]

    resources = {
        "local": ["--procs-per-node", 2],
        "ray": ["--address", cluster.address, "--nodes", 2],
    }
    for target, options in resources.items():
        kept = ["--run-dir", tmp_path / f"launch-{target}"]
        _ketos("launch", target, *options, *kept, "--", *words(tmp_path / target))
    local, ray = ((tmp_path / target / "dataset.json").read_bytes() for target in resources)
    assert local == ray
    assert len(list((tmp_path / "ray").glob("*.arrow"))) > 2
