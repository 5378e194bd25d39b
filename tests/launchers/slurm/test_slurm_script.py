"""What is submitted, beside golden files; what srun and scontrol say, understood. Nothing of SLURM runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.config.launching import SlurmLaunch
from distrib.errors import InputError
from launchers.attempts import Attempt
from launchers.plan import LaunchPlan
from launchers.programs import module_words
from launchers.slurm.environment import (
    allocation,
    for_sbatch,
    for_srun,
    gpus_of,
    inside_allocation,
    job_id,
)
from launchers.slurm.job import record, recorded, restarted, state_of
from launchers.slurm.limits import read_partitions, refusal
from launchers.slurm.script import array_tasks, script, sweep_script
from launchers.slurm.step import read_report, srun_words
from launchers.slurm.watcher import JobFacts, duration, facts_of

GOLDEN = Path(__file__).parent / "golden"

EVERYTHING: dict[str, Any] = {
    "nodes": 4,
    "min_nodes": 2,
    "gpus_per_node": 4,
    "cpus_per_proc": 8,
    "mem": "100.5G",
    "time": "1-12:00:00",
    "partition_name": "gpu,long",
    "account": "scriptorium",
    "qos": "high",
    "constraint": "a100|h100",
    "exclude": "n[3-4]",
    "reservation": "class",
    "signal_before": 300,
    "sbatch_line": ("--licenses=x", "#SBATCH --mail-type=END"),
    "setup": ("module load cuda", "source ~/ketos/bin/activate"),
}


def plan_of(run_dir: str = "/data/run", name: str = "ketos-train", **options: Any) -> LaunchPlan:
    return LaunchPlan(
        target="slurm",
        name=name,
        run_dir=Path(run_dir),
        command="train",
        folder=Path("/home/user"),
        python="/opt/ketos/bin/python",
        options=SlurmLaunch(**options),
    )


@pytest.mark.usefixtures("submitit_installed")
@pytest.mark.parametrize("name", ["plain", "everything", "sweep"])
def test_script_is_the_golden_one(name: str) -> None:
    """Broken: jobs are submitted with other options than a user and the documentation think."""
    pytest.importorskip("submitit")
    if name == "plain":
        text = script(plan_of())
    elif name == "everything":
        text = script(plan_of("/data/it's 100%j", "a name", **EVERYTHING))
    else:
        plans = [plan_of(f"/data/sweep/lrate={rate}", nodes=2, array="%2") for rate in (1, 2, 3)]
        text = sweep_script(plans, Path("/data/sweep"))
    python = "/opt/ketos/bin/python"
    agent = shlex.join(module_words(python, "launchers.slurm", "-u"))
    assert text.replace(agent, f"{python} -u -m launchers.slurm") == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.usefixtures("submitit_installed")
@given(st.text(st.characters(exclude_characters="\0\n/", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_directory_reaches_the_agent(name: str) -> None:
    """Broken: a directory with a blank or a quotation mark would be another one on the node."""
    pytest.importorskip("submitit")
    last = script(plan_of(f"/data/{name}")).rstrip("\n").split("\n")[-1]
    words = shlex.split(last)
    assert words[0] == "exec"
    assert words[-1] == str(Path(f"/data/{name}"))


def test_step_names_all_processes_and_the_memory_of_the_job() -> None:
    attempt = Attempt(
        number=1, folder=Path("/data/100%/0001"), words=("python", "-m", "distrib"), environment={}
    )
    words = srun_words(plan_of(nodes=2, gpus_per_node=4), attempt, nodes=2, cpus_per_proc=8)
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=8", "--mem=0"} <= set(words)
    assert "--output=/data/100%%/0001/rank-%t.log" in words
    assert words[-3:] == ["python", "-m", "distrib"]


def test_report_of_srun() -> None:
    """Broken: the cause of an end would be taken from the wrong process."""
    report = read_report(
        "srun: error: n2: task 1: Exited with exit code 140\n"
        "srun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
        "srun: error: n1: task 0: Terminated\n"
        "srun: error: n[3-4]: tasks 2-3,5: Segmentation fault (core dumped)\n"
        "srun: error: Node failure on n9\n"
    )
    assert list(report.codes.items()) == [(1, 140), (0, -15), (2, -11), (3, -11), (5, -11)]
    assert report.lost == ["n9"]
    refused = "srun: error: Unable to create step for job 7: More processors requested than permitted\n"
    assert read_report(refused).refused == "More processors requested than permitted"


def test_allocation_as_variables_tell() -> None:
    variables = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS": "8",
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_GPUS_ON_NODE": "4",
    }
    given = allocation(variables)
    assert (given.nodes, given.procs_per_node, given.cpus_per_proc, given.gpus_per_node) == (2, 4, 6, 4)
    with pytest.raises(InputError, match="same number of processes"):
        allocation({**variables, "SLURM_NTASKS": "7"})


def test_inside_a_batch_script_but_not_a_step() -> None:
    """Broken: each process of a step would submit a job, or a batch script one that waits for itself."""
    assert not inside_allocation({})
    assert inside_allocation({"SLURM_JOB_ID": "7"})
    assert inside_allocation({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290"})
    with pytest.raises(InputError, match="srun"):
        inside_allocation({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"})


def test_tasks_of_an_array_are_called_by_both_numbers() -> None:
    """Broken: cancelling the last task would cancel the array."""
    variables = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "4"}
    assert job_id(variables) == "9_4"
    with pytest.raises(InputError, match="SLURM_JOB_ID"):
        job_id({})


def test_environment_of_steps_and_jobs() -> None:
    variables = {
        "SLURM_CONF": "c",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_MEM_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_JOB_ID": "7",
        "SBATCH_ACCOUNT": "a",
        "HOME": "h",
    }
    assert set(for_srun(variables)) == {"SLURM_CONF", "SLURM_JOB_ID", "SBATCH_ACCOUNT", "HOME"}
    assert set(for_sbatch(variables)) == {"SLURM_CONF", "SBATCH_ACCOUNT", "HOME"}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("(null)", 0),
        ("4", 4),
        ("a100:4", 4),
        ("gpu:4(S:0-1)", 4),
        ("gpu:a100:2(S:0,1),gpu:v100:2,fpga:x:9", 4),
    ],
)
def test_gpus(text: str, count: int) -> None:
    assert gpus_of(text) == count


def test_array() -> None:
    assert array_tasks(None, 3) == [0, 1, 2]
    assert array_tasks("%2", 3) == [0, 1, 2]
    assert array_tasks("0-4:2,3%1", 6) == [0, 2, 3, 4]
    for wrong in ("3", "x", "1%0", "0-"):
        with pytest.raises(InputError, match="--array"):
            array_tasks(wrong, 3)


JOB = (
    "JobId=7 JobName=x JobState=FAILED UserId=u(3) GroupId=g(3) MCS_label=N/A Priority=1 JobState={state} "
    "Reason={reason} Requeue=1 Restarts={restarts} BatchFlag=1 RunTime=00:01:00 TimeLimit={limit} "
    "StartTime=2020-01-01T00:00:00 EndTime={end} PreemptTime={preempted} NodeList=n1 "
    "Command=/x JobState=TIMEOUT"
)


def facts(**values: str) -> JobFacts:
    known = {
        "state": "COMPLETING",
        "reason": "None",
        "restarts": "0",
        "limit": "UNLIMITED",
        "preempted": "None",
    }
    found = facts_of(JOB.format(**{**known, "end": "2020-01-01T00:01:00", **values}))
    assert found is not None
    return found


def test_why_a_job_is_ending() -> None:
    """Broken: a job that somebody has cancelled would queue itself again, or a preempted one would not."""
    assert facts().cancelled(0)
    assert facts(state="CANCELLED").cancelled(0)
    assert not facts(end="Unknown").cancelled(0)
    assert not facts(end="2999-01-01T00:00:00").cancelled(0)
    assert not facts(restarts="1").cancelled(0)
    assert facts(restarts="1").cancelled(1)
    assert not facts(preempted="2020-01-01T00:00:30").cancelled(0)
    assert not facts(limit="00:01:00").cancelled(0)
    assert not facts(state="RUNNING").cancelled(0)
    assert facts(end="Unknown").requeued()
    assert facts_of("slurm_load_jobs error: Invalid job id specified") is None


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"state": "PENDING", "reason": "Priority", "end": "Unknown"}, "pending"),
        ({"state": "PENDING", "restarts": "1", "end": "Unknown"}, "requeued"),
        ({"state": "COMPLETING", "end": "Unknown"}, "requeued"),
        ({"state": "RUNNING"}, "running"),
        ({"state": "COMPLETED"}, "done"),
        ({"state": "TIMEOUT"}, "failed"),
        ({"state": "CANCELLED"}, "cancelled"),
        ({"state": "SOMETHING_NEW"}, "unknown"),
    ],
)
def test_states(values: dict[str, str], name: str) -> None:
    assert state_of(facts(**values)).name == name


def test_a_held_job_says_how_to_let_it_go() -> None:
    held = facts(state="PENDING", reason="JobHeldAdmin", end="Unknown")
    assert "scontrol release 7" in state_of(held).sentence


def test_restarted_job_knows_its_directory(tmp_path: Path) -> None:
    assert recorded(tmp_path) is None
    record(tmp_path, "7")
    assert restarted(tmp_path, {"SLURM_JOB_ID": "7"})
    assert not restarted(tmp_path, {"SLURM_JOB_ID": "8"})


def test_durations() -> None:
    assert duration("1-00:00:00") == 86400
    assert duration("10:00") == 600
    assert duration("00:10:00") == 600
    assert duration("UNLIMITED") is None


NODES = """\
p*|up|2|4|4000+|gpu:a100:4(S:0-1)|infinite
p*|up|1|64|9000|(null)|infinite
small|up|1|4|4000|(null)|30:00
"""
RULES = "PartitionName=p AllowAccounts=ALL AllowQos=a,b MaxNodes=2\nPartitionName=small AllowAccounts=x\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, None),
        ({"nodes": 3}, "--nodes 3: partition p gives 2 at most"),
        ({"nodes": 9, "min_nodes": 2}, None),
        ({"nodes": 2, "gpus_per_node": 4}, None),
        ({"nodes": 1, "gpus_per_node": 5}, "4 GPUs at most"),
        ({"nodes": 2, "cpus_per_proc": 64}, "only 1 nodes of partition p have so many cores"),
        ({"qos": "c"}, "--qos c"),
        ({"partition_name": "smal"}, "did you mean `small`"),
        ({"partition_name": "small", "account": "y"}, "takes x"),
        ({"partition_name": "small", "time": "31"}, "may last 30 minutes"),
        ({"partition_name": "small,p", "time": "31"}, None),
    ],
)
def test_limits(options: dict[str, Any], words: str | None) -> None:
    """Broken: impossible jobs would wait for ever, or possible ones would be refused."""
    asked = SlurmLaunch(**options)
    sentence = refusal(asked, max(asked.gpus_per_node, 1), read_partitions(NODES, RULES))
    assert sentence is None if words is None else sentence is not None and words in sentence
