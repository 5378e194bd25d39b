"""The agent: attempts, what it puts on record, one at a time; with processes that are only told of."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from distrib.config.launching import LocalLaunch
from distrib.errors import InputError, RunError
from distrib.runtime.directory.endings import Ending, write_ending
from distrib.runtime.directory.events import EVENTS, EventLog, read_events
from distrib.runtime.directory.lease import Lease
from distrib.runtime.directory.machine import this_process
from launchers.agent import run_attempts
from launchers.attempts import Attempt, Outcome
from launchers.history import read_history
from launchers.micro_batch import batch_words, smaller_batch
from launchers.places import cancel_file, launch_folder
from launchers.plan import LaunchPlan, read_plan, write_plan
from launchers.status import status_of
from launchers.stop import StopRequest

Start = Callable[[Attempt, StopRequest], Outcome]


def _plan(run_dir: Path, **options: object) -> LaunchPlan:
    plan = LaunchPlan(
        target="local",
        name="test",
        run_dir=run_dir,
        command="train",
        folder=run_dir,
        python="python3",
        options=LocalLaunch(procs_per_node=2, **options),  # type: ignore[arg-type]
        first=("--resume", "/elsewhere/step_3.ckpt"),
    )
    write_plan(plan)
    experiment = "train:\n  batch_size: 6\n  accumulate_grad_batches: 2\n"
    plan.experiment.write_text(experiment, encoding="utf-8")
    EventLog(run_dir / EVENTS).append("launch", target="local")
    return plan


def _outcomes(*outcomes: Outcome, seen: list[Attempt]) -> Start:
    left = list(outcomes)

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        seen.append(attempt)
        return left.pop(0)

    return start


def _ends(run_dir: Path) -> list[tuple[object, object]]:
    events = read_events(run_dir / EVENTS)
    return [(each["cause"], each["decision"]) for each in events if each["event"] == "attempt_end"]


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = _plan(tmp_path, env=("A=b c",), time="1-00:00:00")
    assert read_plan(tmp_path) == plan
    with pytest.raises(InputError, match="nothing was launched there"):
        read_plan(tmp_path / "elsewhere")
    launch_folder(tmp_path).joinpath("launch.json").write_text('{"target": "moon"}', encoding="utf-8")
    with pytest.raises(InputError, match="launch the run again"):
        read_plan(tmp_path)


def test_failures_are_tried_again_until_it_is_done(tmp_path: Path) -> None:
    seen: list[Attempt] = []
    said: list[str] = []
    start = _outcomes(Outcome(code=1, codes={1: -9}), Outcome(code=143), Outcome(code=0), seen=seen)
    assert run_attempts(_plan(tmp_path), start, echo=said.append) == 0
    assert [attempt.number for attempt in seen] == [1, 2, 3]
    assert _ends(tmp_path) == [("killed", "restart"), ("preempted", "restart"), ("done", "end")]
    assert "SIGKILL" in said[0]
    assert seen[0].environment["KETOS_ATTEMPT"] == str(seen[0].folder)


def test_options_that_begin_a_run_are_given_until_a_step_was_saved(tmp_path: Path) -> None:
    """Else a restart would go back to the checkpoint that the run was begun with."""
    seen: list[Attempt] = []
    plan = _plan(tmp_path)

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        seen.append(attempt)
        if len(seen) == 2:
            EventLog(tmp_path / EVENTS).append("first_batch", step=3)
            EventLog(tmp_path / EVENTS).append("save", step=4)
        return Outcome(code=0 if len(seen) == 3 else 137)

    assert run_attempts(plan, start) == 0
    assert ["--resume" in attempt.words for attempt in seen] == [True, True, False]


def test_a_run_that_is_done_is_not_made_again(tmp_path: Path) -> None:
    """A scheduler may start a job twice."""
    seen: list[Attempt] = []
    plan = _plan(tmp_path)
    assert run_attempts(plan, _outcomes(Outcome(code=0), seen=seen)) == 0
    assert run_attempts(plan, _outcomes(seen=seen)) == 0
    assert len(seen) == 1


def test_bad_input_ends_it_with_the_sentence(tmp_path: Path) -> None:
    said: list[str] = []

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        ending = Ending(rank=1, host="n2", pid=1, exit_code=2, cause="input", sentence="No such file x.")
        write_ending(attempt.folder, ending)
        return Outcome(code=1, codes={0: 1, 1: 2})

    assert run_attempts(_plan(tmp_path), start, echo=said.append) == 2
    assert "No such file x." in said[0]


def test_memory_halves_the_micro_batch_and_keeps_the_global_one(tmp_path: Path) -> None:
    seen: list[Attempt] = []

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        seen.append(attempt)
        ending = Ending(rank=0, host="n1", pid=1, exit_code=1, cause="memory", sentence="Out of memory.")
        write_ending(attempt.folder, ending)
        return Outcome(code=1 if len(seen) < 4 else 0, codes={})

    assert run_attempts(_plan(tmp_path, auto_batch=True, max_restarts=0), start) == 0
    sizes = [attempt.words[6:] for attempt in seen]
    first = ("--resume", "/elsewhere/step_3.ckpt")
    held = ("--global-batch-size", "24")
    assert sizes == [
        first,
        (*first, "--batch-size", "3", *held),
        (*first, "--batch-size", "2", *held),
        (*first, "--batch-size", "1", *held),
    ]


def test_memory_ends_it_where_nothing_smaller_is_allowed(tmp_path: Path) -> None:
    said: list[str] = []

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        ending = Ending(rank=0, host="n1", pid=1, exit_code=1, cause="memory", sentence="Out of memory.")
        write_ending(attempt.folder, ending)
        return Outcome(code=1, codes={})

    assert run_attempts(_plan(tmp_path), start, echo=said.append) == 1
    assert "--auto-batch" in said[0]


def test_a_signal_to_the_agent_ends_its_attempt_and_no_other_follows(tmp_path: Path) -> None:
    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        while stop.reason is None:
            signal.pause()
        return Outcome(code=143)

    assert run_attempts(_plan(tmp_path), start) == 143
    assert _ends(tmp_path) == [("preempted", "end")]


def test_a_job_gives_itself_back_to_its_queue(tmp_path: Path) -> None:
    queued: list[bool] = []
    code = run_attempts(
        _plan(tmp_path), _outcomes(Outcome(code=140), seen=[]), requeue=lambda: queued.append(True), job="7"
    )
    assert (code, queued) == (0, [True])
    assert _ends(tmp_path) == [("preempted", "requeue")]
    assert read_history(tmp_path).attempts[0].begin["job"] == "7"


def test_an_agent_that_was_killed_counts_as_lost(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    EventLog(tmp_path / EVENTS).append("attempt", attempt=1)
    seen: list[Attempt] = []
    assert run_attempts(plan, _outcomes(Outcome(code=0), seen=seen)) == 0
    assert seen[0].number == 2
    assert [each.cause for each in read_history(tmp_path).past()] == ["lost", "done"]


def test_a_wish_to_end_is_found_in_the_run_directory(tmp_path: Path) -> None:
    plan = _plan(tmp_path)

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        cancel_file(tmp_path).touch()
        while stop.reason is None:
            pass
        return Outcome(code=143)

    assert run_attempts(plan, start) == 130
    assert _ends(tmp_path) == [("cancelled", "end")]


def test_two_agents_are_never_at_work_on_one_run(tmp_path: Path) -> None:
    plan = _plan(tmp_path)

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        with pytest.raises(InputError, match="is being run already"):
            run_attempts(plan, _outcomes(Outcome(code=0), seen=[]))
        return Outcome(code=0)

    assert run_attempts(plan, start) == 0


def test_a_second_agent_waits_for_the_first_where_it_is_told_to(tmp_path: Path) -> None:
    """What a scheduler has started twice must neither train twice nor fail."""
    plan = _plan(tmp_path)
    first = Lease.acquire(launch_folder(tmp_path), environ={}, interval=0.2)
    said: list[str] = []

    def hear(sentence: str) -> None:
        said.append(sentence)
        first.release()

    start = _outcomes(Outcome(code=0), seen=[])
    assert run_attempts(plan, start, wait_for_other=True, echo=hear) == 0
    assert "Another agent is at work" in said[0]


def test_a_new_launch_begins_a_new_history(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    seen: list[Attempt] = []
    assert run_attempts(plan, _outcomes(Outcome(code=2), seen=seen)) == 2
    EventLog(tmp_path / EVENTS).append("launch", target="local")
    assert run_attempts(plan, _outcomes(Outcome(code=0), seen=seen)) == 0
    assert [attempt.number for attempt in seen] == [1, 2]


def test_variables_of_processes_are_for_their_user_alone(tmp_path: Path) -> None:
    """A group may look at a run, not at its passwords."""
    _plan(tmp_path, env=("TOKEN=secret",))
    for path in launch_folder(tmp_path).iterdir():
        assert "secret" not in path.read_text() or path.stat().st_mode & 0o077 == 0


def test_a_launch_whose_process_ended_before_there_was_an_agent_is_lost(tmp_path: Path) -> None:
    """Else the directory could neither be launched again nor waited for."""
    plan = _plan(tmp_path)
    here = asdict(this_process())
    EventLog(tmp_path / EVENTS).append("launch", target="local", by=here)
    assert status_of(plan, None).state.name == "pending"
    EventLog(tmp_path / EVENTS).append("launch", target="local", by={**here, "start": here["start"] - 1})
    assert status_of(plan, None).state.name == "lost"


def test_pixels_are_halved_with_twice_as_many_micro_batches(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    experiment = "train:\n  batch_size: 0\n  batch_pixels: 600\n  accumulate_grad_batches: 3\n"
    plan.experiment.write_text(experiment, encoding="utf-8")
    batch = smaller_batch(plan, {})
    assert batch == {"batch_pixels": 300}
    words = ["--batch-pixels", "300", "--accumulate-grad-batches", "6"]
    assert batch_words(plan, batch) == words
    assert smaller_batch(plan, {"batch_pixels": 75}) is None


def test_an_agent_from_which_another_has_taken_over_decides_nothing(tmp_path: Path) -> None:
    plan = _plan(tmp_path)

    def start(attempt: Attempt, stop: StopRequest) -> Outcome:
        assert stop.lease is not None
        stop.lease._taken_by = "another"
        assert stop.reason is not None
        return Outcome(code=143)

    with pytest.raises(RunError, match="taken this run over"):
        run_attempts(plan, start)
    assert _ends(tmp_path) == []


def test_commands_that_save_no_checkpoints_are_queued_as_often_as_allowed(tmp_path: Path) -> None:
    plan = dataclasses.replace(_plan(tmp_path, max_requeues=8), command="compile")
    outcomes = [*[Outcome(code=143)] * 8, Outcome(code=0)]
    assert run_attempts(plan, _outcomes(*outcomes, seen=[])) == 0
