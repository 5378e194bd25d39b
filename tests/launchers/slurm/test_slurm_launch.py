"""`ketos launch slurm` and the templates on a real cluster, where nothing goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .cluster import Cluster, wait_until
from .runs import SPEC, TOP, Run, ketos, note

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]

TEMPLATES = Path(__file__).resolve().parents[3] / "slurm"


def test_two_nodes_then_cancelled(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """Status and cancel from another machine. Broken: a run could not be seen, or would not save when told
    to end."""
    run = new_run("with space's %j", epochs=100)
    job = run.launch("--nodes", 2, "--name", "a name", "--env", "KETOS_TEST=it's", "--time", 30)
    run.wait_for_steps(10)
    status = run.status()
    assert status["state"] == "running", status
    assert run.events("attempt")[0]["job"] == job
    assert run.events("preflight")[0]["nodes"] == 2
    began = time.time()
    ketos(cluster, "launch", "cancel", run.folder)
    ketos(cluster, "launch", "wait", run.folder, expect=130)
    note(slurm_cancelled=time.time() - began)
    assert run.status()["state"] == "cancelled"
    assert run.events("preempt")[-1]["signal"] == "SIGTERM"
    wait_until(lambda: not cluster.queue(), seconds=20, of="an empty queue")


def test_cancelled_while_it_waits(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """A job in the queue has no agent to ask. Broken: it would start later all the same."""
    run = new_run()
    run.launch("--sbatch-line=--hold")
    assert run.status()["state"] == "pending"
    ketos(cluster, "launch", "cancel", run.folder)
    wait_until(lambda: not cluster.queue(), seconds=20, of="an empty queue")
    assert run.status()["state"] == "cancelled"
    assert not run.events("attempt")


def test_sweep(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """One array of two runs. Broken: tasks would share a directory or an option's value."""
    run = new_run("sweep")
    sweep = ["--sweep", "lrate=0.01,0.001"]
    ketos(cluster, *TOP, "launch", "slurm", *sweep, "--wait", "--", "train", *run.options)
    rates = {}
    for folder in json.loads((run.folder / "sweep.json").read_text()):
        each = Run(cluster, Path(folder), run.lines, epochs=run.epochs)
        assert each.causes() == ["done"]
        each.check_ledger()
        job = json.loads((Path(folder) / "launch" / "slurm.json").read_text())["job"]
        rates[job.partition("_")[2]] = Path(folder).name
    assert rates == {"0": "lrate=0.01", "1": "lrate=0.001"}


def test_compiled_by_two_nodes(cluster: Cluster, launch_pages: Path, tmp_path: Path) -> None:
    """The data set does not depend on where it was compiled: each process writes shards of its own share, so
    the number of processes has to be the same."""
    lines = sorted((launch_pages / "lines").glob("*.png"))
    words = ["compile", "-f", "path", "--shard-format", "arrow", "--shard-size", "64K", "-o"]
    here = ["--procs-per-node", 2, "--run-dir", tmp_path / "local", "--", *words, tmp_path / "here"]
    ketos(cluster, *TOP, "launch", "local", *here, *lines)
    resources = ["--nodes", 2, "--run-dir", tmp_path / "launch", "--wait"]
    ketos(cluster, *TOP, "launch", "slurm", *resources, "--", *words, tmp_path / "there", *lines)
    assert (tmp_path / "there/dataset.json").read_bytes() == (tmp_path / "here/dataset.json").read_bytes()


def test_template(cluster: Cluster, new_run: Callable[..., Run], tmp_path: Path) -> None:
    """Plain sbatch with the template, two nodes, queued again by an administrator. Broken: the processes
    would not find each other, or the second start would refuse its own directory."""
    run = new_run(epochs=16)
    experiment = tmp_path / "experiment.yml"
    experiment.write_text(f"device: cpu\ntrain:\n  spec: '{SPEC}'\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    resources = ["--parsable", "--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0"]
    words = ["sbatch", *resources, TEMPLATES / "train.sbatch", experiment, *run.options]
    job = subprocess.run(
        list(map(str, words)),
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**cluster.environment, "PATH": path, "OMP_NUM_THREADS": "1"},
    ).stdout.strip()
    log = tmp_path / f"ketos-train-{job}.log"
    wait_until(lambda: log.exists(), seconds=30, of="the job's log")
    run.wait_for_steps(10)
    began = time.time()
    cluster.run("scontrol", "requeue", job)
    note(slurm_template_requeue=run.resumed_after(began))
    run.wait_for_end()
    run.check_ledger()
    assert run.causes() == ["preempted", "done"], log.read_text()
    assert run.events("start")[-1]["processes"] == 2
    assert str(log) in log.read_text()
    assert "logs of the processes" in log.read_text()
