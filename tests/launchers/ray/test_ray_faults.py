"""Runs on a real cluster, hurt in every way: they finish, and train on each line once an epoch."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from .cluster import RayCluster, wait_for
from .runs import Run, kill, note

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("ray")]


def test_a_submitted_run_survives_the_loss_of_a_worker_and_ray_job_stop(
    cluster: RayCluster, lines: Path, tmp_path: Path
) -> None:
    """`ray job submit` trains on two machines, a killed worker costs seconds, a stopped job saves."""
    run = Run(cluster, tmp_path / "run", lines, epochs=12)
    job = run.submit("--nodes", 2)
    run.wait_for_attempt(1)
    assert run.events("start")[0]["processes"] == 2
    run.wait_for_steps(5)

    killed = time.time()
    kill(pid for pid, words in cluster.nodes["n2"].processes().items() if "RayTrainWorker" in words)
    again = run.wait_for_attempt(2)
    note({"worker killed": again - killed})
    run.wait_for_steps(5)

    stopped = time.time()
    cluster.stop(job)
    wait_for(lambda: not run.processes(), "the end of all processes", 60)
    note({"ray job stop, until nothing runs": time.time() - stopped})
    assert cluster.state(job) == "STOPPED"
    assert run.events("save")[-1]["kind"] == "stop", run.events("save")[-1]

    submitted = time.time()
    assert cluster.wait_for_job(run.submit("--nodes", 2)) == "SUCCEEDED"
    note({"submitted again after ray job stop": run.wait_for_attempt(3) - submitted})
    run.check_ledger()
    assert not run.processes()


def test_an_elastic_run_uses_the_machines_there_are(cluster: RayCluster, lines: Path, tmp_path: Path) -> None:
    """A killed machine leaves a run on one, a returned one is used again, a drained one is left in time."""
    run = Run(cluster, tmp_path / "run", lines, epochs=50)
    job = run.submit("--nodes", 2, "--min-nodes", 1)
    run.wait_for_attempt(1)
    run.wait_for_steps(5)

    killed = time.time()
    cluster.kill_node("n2")
    on_one = run.wait_for_attempt(2)
    assert run.events("start")[1]["processes"] == 1
    assert run.events("attempt_end")[0]["cause"] == "lost"
    assert run.events("attempt_end")[0]["lost"] == ["n2"]
    note({"machine killed, to one machine": on_one - killed})

    cluster.add_node("n2")
    cluster.wait_for_nodes(2)
    back = time.time()
    on_two = run.wait_for_attempt(3)
    assert run.events("start")[2]["processes"] == 2
    assert "There are 2 machines now instead of 1." in cluster.logs(job)
    note({"machine returned, to two machines": on_two - back})
    run.wait_for_steps(5)

    drained = time.time()
    cluster.drain_node("n2", seconds=60)
    again = run.wait_for_attempt(4)
    assert run.events("start")[3]["processes"] == 1
    assert "Ray takes n2 away." in cluster.logs(job)
    note({"machine drained, to one machine": again - drained})
    # Both were asked to end, and none was killed: nothing had to be done again.
    assert [end["cause"] for end in run.events("attempt_end")[1:]] == ["preempted", "preempted"]

    assert cluster.wait_for_job(job) == "SUCCEEDED", cluster.logs(job)
    run.check_ledger()
