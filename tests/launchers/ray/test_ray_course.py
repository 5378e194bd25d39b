"""What a driver makes of what the machines of an attempt tell it."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from distrib import __version__
from distrib.config.launching import RayLaunch
from distrib.errors import InputError
from launchers.attempts import Attempt
from launchers.plan import LaunchPlan
from launchers.programs import module_words
from launchers.ray.course import Course
from launchers.ray.environment import machine_needs, rank_variables, shown_needs, start_order
from launchers.ray.executor import dry_run, submission_id
from launchers.ray.watcher import Node, check_capacity


def _plan(**options: Any) -> LaunchPlan:
    return LaunchPlan(
        target="ray",
        name="ketos-train",
        run_dir=Path("/shared/run"),
        command="train",
        folder=Path("/shared/work"),
        python="/opt/python",
        options=RayLaunch(**{"nodes": 2, **options}),
    )


def _course(plan: LaunchPlan | None = None, **facts: Any) -> Course:
    """Two machines that have met; ``facts`` are those of the second where it differs."""
    plan = plan or _plan()
    course = Course(plan=plan, folder=Path("/shared/run/launch/attempts/0001"), nonce="n", size=2)
    same = {"host": "a", "pid": 1, "python": "3.11.7", "ketos": __version__, "seen": "n", "writable": True}
    for number, own in enumerate(({}, {"host": "b", **facts})):
        place = {
            "node_id": f"id{number}",
            "ip": f"10.0.0.{number}",
            "port": 4000 + number,
            "host": "ab"[number],
        }
        course.take(number, {"place": place})
        course.take(number, {"facts": {**same, **own}})
    return course


def _ended(course: Course, *codes: int) -> None:
    course.started = True
    for rank, code in enumerate(codes):
        course.take(rank, {"ended": {"rank": rank, "code": code}})


def test_all_well() -> None:
    course = _course()
    course.check()
    _ended(course, 0, 0)
    outcome = course.outcome(lost=[], trouble=None)
    assert (outcome.code, outcome.codes, outcome.nodes, outcome.processes) == (0, {0: 0, 1: 0}, 2, 2)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"seen": None}, "/shared/run is not the same folder on b"),
        ({"seen": "another"}, "/shared/run is not the same folder on b"),
        ({"writable": False}, "cannot be written to"),
        ({"ketos": "0.0.1"}, "has ketos 0.0.1 on b"),
        ({"python": "3.10.1"}, "Python 3.10.1 on b and 3.11.7 on a"),
    ],
)
def test_a_machine_that_differs_is_named(facts: dict[str, Any], words: str) -> None:
    """The run would hang, or write to two places, hours later."""
    course = _course(**facts)
    course.check()
    outcome = course.outcome(lost=[], trouble=None)
    assert (outcome.cause, outcome.code) == ("input", 2)
    assert words in str(outcome.sentence)


@pytest.mark.parametrize(
    ("path", "remedy"), [("/shared/work", "launch from a folder"), ("/opt/python", "install Python")]
)
def test_what_a_machine_lacks_is_named(path: str, remedy: str) -> None:
    course = Course(plan=_plan(), folder=Path("/x"), nonce="n", size=2)
    course.take(0, {"place": {"node_id": "1", "ip": "10.0.0.1", "port": 1, "host": "a"}})
    course.take(0, {"problem": {"path": path, "reason": "No such file or directory"}})
    assert course.outcome(lost=[], trouble=None).cause == "input"
    assert str(course.sentence).startswith(
        f"{path} cannot be used on a (no such file or directory); {remedy}"
    )


def test_an_interpreter_without_ketos_is_named_with_what_it_says() -> None:
    course = Course(plan=_plan(), folder=Path("/x"), nonce="n", size=2)
    course.take(0, {"place": {"node_id": "1", "ip": "10.0.0.1", "port": 1, "host": "a"}})
    course.take(0, {"said": "/opt/python: No module named launchers"})
    course.take(0, {"gone": True})
    assert course.sentence == (
        "/opt/python cannot run ketos on a (/opt/python: No module named launchers); "
        "install ketos-distrib there."
    )


def test_a_lost_machine_is_lost_and_not_a_failure_of_its_peers() -> None:
    """The others fail because of it: that must not count against the run."""
    course = _course()
    _ended(course, 1)
    outcome = course.outcome(lost=["n2"], trouble="Ray Train: a worker died")
    assert (outcome.code, outcome.lost, outcome.cause) == (1, ("n2",), None)


def test_a_dead_worker_whose_processes_have_saved_says_so() -> None:
    course = _course()
    _ended(course, 143, 143)
    outcome = course.outcome(lost=[], trouble="Ray Train: a worker died")
    assert outcome.code == 143
    assert str(outcome.sentence).startswith("A worker of Ray has died")


def test_workers_that_ray_cannot_place_are_tried_again_for_free() -> None:
    outcome = Course(plan=_plan(), folder=Path("/x"), nonce="n", size=2).outcome(
        lost=[], trouble="Ray Train: timeout"
    )
    assert (outcome.cause, outcome.sentence) == ("lost", "Ray Train: timeout")


def test_processes_whose_end_nobody_knows_were_killed() -> None:
    """An attempt is done only where all processes said so."""
    course = _course()
    _ended(course, 0)
    assert course.outcome(lost=[], trouble=None).code == -9


def test_the_reason_of_the_driver_stays() -> None:
    course = _course()
    course.interrupt("preempted", "Ray takes n2 away.")
    course.refuse("too late")
    _ended(course, 143, 143)
    outcome = course.outcome(lost=["n2"], trouble=None)
    assert (outcome.cause, outcome.sentence) == ("preempted", "Ray takes n2 away.")


def test_ranks_of_a_machine_are_consecutive() -> None:
    """Collectives inside a machine, and the GPU of each process, follow from these numbers."""
    plan = _plan(procs_per_node=3)
    places = [
        rank_variables(plan, machines=2, number=number, local_rank=local_rank)
        for number in range(2)
        for local_rank in range(3)
    ]
    assert [place["RANK"] for place in places] == list("012345")
    assert [place["LOCAL_RANK"] for place in places] == list("012012")
    assert {place["WORLD_SIZE"] for place in places} == {"6"}
    order = start_order(
        Attempt(number=1, folder=Path("/x"), words=("ketos",), environment={"A": "1"}),
        plan,
        _course(plan).machines(),
        1,
    )
    assert [process["rank"] for process in order["processes"]] == [3, 4, 5]
    meeting = {"MASTER_ADDR": "10.0.0.0", "MASTER_PORT": "4000", "A": "1"}
    assert all(meeting.items() <= process["environment"].items() for process in order["processes"])


def test_needs_of_a_machine() -> None:
    needs = machine_needs(_plan(gpus_per_node=4, cpus_per_proc=6, mem="64G"))
    assert needs == {"CPU": 24.0, "GPU": 4.0, "memory": 64.0 * 2**30}
    assert shown_needs(needs) == "24 CPUs, 4 GPUs and 68.7 GB of memory"


def test_a_cluster_that_is_too_small_is_refused_with_what_it_has() -> None:
    """Ray would wait for ever."""
    node = Node(id="1", name="n1", total={"CPU": 8.0}, free={})
    drained = dataclasses.replace(node, id="2", name="n2", drained_by=0.0)
    check_capacity([node, node], {"CPU": 8.0}, 2)
    with pytest.raises(
        InputError, match=r"the cluster has 1 such machine \(n1 with 8 CPUs; n2 with 8 CPUs\)"
    ):
        check_capacity([node, drained], {"CPU": 8.0}, 2)
    with pytest.raises(InputError, match=r"the cluster has 0 such machines \(n1 with 8 CPUs and 0 GPUs\)"):
        check_capacity([node], {"CPU": 1.0, "GPU": 1.0}, 1)


def test_dry_run_says_where_each_process_would_be() -> None:
    text = dry_run(_plan(procs_per_node=2, cpus_per_proc=4, min_nodes=1, wait=False))
    assert "STRICT_SPREAD: one a machine with 8 CPUs" in text
    assert "1 to 2 machines" in text
    assert "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=1" in text
    ranks, driver = (shlex.join(module_words("/opt/python", name)) for name in ("distrib", "launchers.ray"))
    assert f"{ranks} --config /shared/run/launch/experiment.yml train" in text
    assert f"cd /shared/work && exec env PYTHONSAFEPATH=1 {driver} /shared/run" in text


def test_the_job_of_a_driver() -> None:
    """`ketos launch status` asks Ray about this id."""
    assert submission_id({}) is None
    assert submission_id({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "j1"}}'}) == "j1"
