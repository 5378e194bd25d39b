"""What a cluster cannot give: one sentence with the remedy, exit code 2, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import ACCOUNT, Cluster
from .runs import TOP, Run, ketos

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]

REFUSALS = {
    ("--partition-name", "nope"): "--partition-name nope: the cluster has no such partition",
    ("--nodes", "9"): "--nodes 9: partition p gives 3 at most",
    ("--nodes", "3", "--partition-name", "pair"): "--nodes 3: partition pair gives 2 at most",
    ("--gpus-per-node", "8"): "--gpus-per-node 8: nodes of partition p have 4 GPUs at most",
    ("--mem", "99G"): "--mem 99G: nodes of partition p have 4000 MiB of memory at most",
    ("--cpus-per-proc", "9"): "nodes of partition p have 4 cores at most",
    ("--time", "60", "--partition-name", "short"): "--time 60: jobs of partition short may last 10 minutes",
    ("--account", "no", "--partition-name", "closed"): f"--account no: partition closed does not take it; it "
    f"takes {ACCOUNT}",
    ("--qos", "no", "--partition-name", "closed"): "--qos no: partition closed does not take it",
    ("--qos", "unpaid"): "--qos unpaid: SLURM does not let you use it",
    ("--constraint", "zz"): "--constraint zz: no node has such features",
    ("--reservation", "zz"): "--reservation zz: there is none",
    ("--exclude", "zz"): "--exclude zz: names nodes that the cluster has not",
    ("--sbatch-line", "--nonsense=1"): "sbatch does not take the job: unrecognized option",
    ("--sbatch-line", "nonsense"): "--sbatch-line nonsense: must be an option of sbatch",
}


@pytest.mark.parametrize("options", REFUSALS, ids=" ".join)
def test_refused(cluster: Cluster, new_run: Callable[..., Run], options: tuple[str, ...]) -> None:
    """Broken: the job would wait for ever, or sbatch's own words would be all that a user gets."""
    run = new_run()
    _refused(cluster, run, options, REFUSALS[options])
    assert not cluster.queue()


def test_no_programs(cluster: Cluster, new_run: Callable[..., Run], tmp_path: Path) -> None:
    """A machine that is no login node."""
    _refused(cluster, new_run(), (), "`sbatch` is not on PATH", PATH=str(tmp_path))


def test_no_controller(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """A controller that is down. Broken: a traceback, or a launch that nobody will ever start."""
    cluster.kill_controller()
    try:
        _refused(cluster, new_run(), (), "SLURM's controller does not answer")
    finally:
        cluster.start_controller()


def _refused(cluster: Cluster, run: Run, options: tuple[str, ...], sentence: str, **variables: str) -> None:
    words = [*TOP, "launch", "slurm", *options, "--", "train", *run.options]
    printed = ketos(cluster, *words, expect=2, **variables)
    assert sentence in printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert not run.folder.exists()
