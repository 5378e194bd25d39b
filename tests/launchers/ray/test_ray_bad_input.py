"""What a cluster cannot do is said in one sentence, with exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cluster import MARK, RayCluster, require_ray, wait_for
from .runs import Run

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]


def _refused(words: list[str], **variables: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **variables}, timeout=120
    )
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


def test_no_cluster_at_the_address(tmp_path: Path, lines: Path) -> None:
    """Ray itself would try for a minute."""
    require_ray()
    words = Run(RayCluster(tmp_path), tmp_path / "run", lines, epochs=1).words("--address", "127.0.0.1:1")
    assert "--address 127.0.0.1:1: no Ray cluster answers there" in _refused(words)
    assert not (tmp_path / "run").exists()


def test_without_ray(tmp_path: Path, lines: Path) -> None:
    """The package is an extra, which not everybody has installed."""
    (tmp_path / "ray.py").write_text("raise ImportError('No module named ray')")
    words = Run(RayCluster(tmp_path), tmp_path / "run", lines, epochs=1).words()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from distrib.__main__ import main; main()"
    said = _refused([sys.executable, "-c", code, *words[3:]])
    assert said.startswith("Error: Ray is not installed here")
    assert "pip install 'ketos-distrib[ray]'" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        (["--nodes", "5"], "--nodes 5 with 1 CPU each: the cluster has 2 such machines"),
        (["--nodes", "2", "--gpus-per-node", "1"], "the cluster has 0 such machines (n"),
    ],
)
def test_more_than_the_cluster_has(
    cluster: RayCluster, lines: Path, tmp_path: Path, resources: list[str], sentence: str
) -> None:
    """Ray itself would wait for ever."""
    run = Run(cluster, tmp_path / "run", lines, epochs=1)
    said = _refused(run.words("--address", cluster.address, *resources))
    assert sentence in said
    assert not run.folder.exists()


@pytest.mark.slow
def test_a_machine_without_the_python_of_the_run(cluster: RayCluster, lines: Path, tmp_path: Path) -> None:
    """Found before a process is started, and named."""
    run = Run(cluster, tmp_path / "run", lines, epochs=1)
    lonely = tmp_path / "python"
    refusal = f'case "${MARK}" in n2-*) echo "not here" >&2; exit 127;; esac'
    lonely.write_text(f'#!/bin/sh\n{refusal}\nexec {sys.executable} "$@"\n')
    lonely.chmod(0o755)
    code = f"import sys; sys.executable = {str(lonely)!r}; from distrib.__main__ import main; main()"
    job = cluster.submit([sys.executable, "-c", code, *run.words("--nodes", 2)[3:]])
    assert cluster.wait_for_job(job) == "FAILED"
    (end,) = run.events("attempt_end")
    assert (end["cause"], end["code"]) == ("input", 2)
    assert f"{lonely} cannot run ketos on" in end["sentence"]
    assert "(not here)" in end["sentence"]
    assert end["sentence"] in cluster.logs(job)
    assert not run.processes()


@pytest.mark.slow
def test_a_run_directory_that_is_not_shared(cluster: RayCluster, lines: Path, tmp_path: Path) -> None:
    """A machine that sees another folder would train into nowhere."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a machine that sees other files needs the right to mount")
    (tmp_path / "local").mkdir()
    cluster.add_node("n3", blind_to=tmp_path / "local")
    try:
        cluster.wait_for_nodes(3)
        run = Run(cluster, tmp_path / "local" / "run", lines, epochs=1)
        assert cluster.wait_for_job(run.submit("--nodes", 3)) == "FAILED"
        (end,) = run.events("attempt_end")
        assert (end["cause"], end["code"]) == ("input", 2)
        assert f"{run.folder} is not the same folder on" in end["sentence"]
        assert not run.processes()
    finally:
        # An idle node that is drained is taken from the cluster at once.
        cluster.drain_node("n3", seconds=1)
        wait_for(lambda: "n3" not in cluster.living(), "the end of n3", 60)
        cluster.kill_node("n3")
