"""What a cluster does to jobs, done to a training run of two processes: it ends by itself, each line once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from .cluster import Cluster, wait_until
from .runs import Run, note

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def test_time_limit_requeue_and_preemption(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """One run after the other of: the signal before the time limit, `scontrol requeue`, a job that comes
    first. Broken: the run would end with the job, lose steps, or do lines twice."""
    run = new_run(epochs=30)
    job = run.launch("--nodes", 2, "--partition-name", "low")
    run.wait_for_steps(20)
    began = time.time()
    cluster.run("scancel", "--signal=USR2", job)
    note(slurm_time_limit_signal=run.resumed_after(began))

    run.wait_for_steps(20)
    began = time.time()
    cluster.run("scontrol", "requeue", job)
    note(slurm_requeue=run.resumed_after(began))

    run.wait_for_steps(20)
    began = time.time()
    cluster.run("sbatch", "-p", "p", "-N3", "--exclusive", "--output=/dev/null", "--wrap", "true")
    note(slurm_preemption=run.resumed_after(began))

    run.wait_for_end()
    run.check_ledger()
    assert run.causes() == ["preempted", "preempted", "preempted", "done"]
    assert {event["job"] for event in run.events("attempt")} == {job}
    stalls = [event["stall_ms"] for event in run.events("save")]
    assert stalls, "nothing was saved"


def test_lost_nodes(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """slurmd, stepd and processes of a node killed; then those of the node of the batch step, so that nobody
    is left to decide. Broken: the run would wait for the dead, or end, or not know of the attempt it lost."""
    run = new_run(epochs=24)
    run.launch("--nodes", 2)
    run.wait_for_steps(20)
    began = time.time()
    cluster.kill_node("n2")
    note(slurm_node_lost=run.resumed_after(began))
    cluster.restart_node("n2")
    run.wait_for_steps(20)
    began = time.time()
    cluster.kill_node("n1")
    note(slurm_agent_lost=run.resumed_after(began))
    run.wait_for_end()
    run.check_ledger()
    # SLURM may notice a lost node only when the job has begun anew, and queue it once more.
    assert [cause for cause in run.causes() if cause != "preempted"] == ["lost", None, "done"], run.told()
    assert run.events("attempt_end")[0]["lost"] == ["n2"]


def test_controller_killed_and_batch_step_run_twice(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """A controller that is killed may start a job again that still runs. Broken: two agents would train in
    one directory, or the second would call the run a failure."""
    run = new_run(epochs=24)
    job = run.launch("--nodes", 2)
    run.wait_for_steps(10)
    cluster.kill_controller()
    run.wait_for_steps(10)
    cluster.start_controller()
    second = subprocess.run(
        [sys.executable, "-m", "launchers.slurm", str(run.folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**cluster.environment, "SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": "2"},
        timeout=120,
    ).stdout
    assert "waiting for its end" in second
    run.wait_for_end()
    wait_until(lambda: not cluster.queue(), seconds=60, of="the end of the job")
    run.check_ledger()
    assert run.causes() == ["done"]
    assert cluster.job(job)["JobState"] == "COMPLETED"


def test_cancelled_by_its_user(cluster: Cluster, new_run: Callable[..., Run]) -> None:
    """`scancel` is the user's word. Broken: the job would queue itself again, for ever."""
    run = new_run(epochs=100)
    job = run.launch("--nodes", 2)
    run.wait_for_steps(10)
    cluster.run("scancel", job)
    wait_until(lambda: not cluster.queue(), seconds=60, of="an empty queue")
    assert run.causes() == ["cancelled"], run.told()
    assert cluster.job(job)["JobState"] == "CANCELLED"
    assert run.events("preempt")[-1]["signal"] == "SIGTERM"
