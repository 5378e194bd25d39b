"""A signal ends a job at a step that it saves, with a code that says so; other ends leave their cause."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrib.config.learning import Train
from distrib.runtime.checkpoints.record import newest_first
from distrib.runtime.directory.endings import ATTEMPT_VARIABLE, Ending, read_endings
from distrib.runtime.directory.lease_file import Holder, LeaseFile, lease_in_force
from distrib.training.interruption import STOP_SIGNALS, Interruption
from distrib.training.memory import memory_exhausted, memory_sentence

from .comparing import DECODING, STEPS_AN_EPOCH, at, checkpoints, differences, training
from .forked import Harm, Job, Server
from .jobs import under_torchrun
from .launching import rows

WRITING = "distrib.runtime.checkpoints.store:write_file"
LEAVING = "distrib.training.run:newest_first"
"""Called when everything is saved, and Lightning has torn down what it had set up."""
LOADING = "distrib.training.recognition:RecognitionModule.configure_optimizers"

signals = st.lists(st.sampled_from([None, *STOP_SIGNALS]), min_size=1, max_size=4)


@given(signals)
def test_processes_agree_on_a_signal_that_one_of_them_got(received: list[signal.Signals | None]) -> None:
    """Broken: some end with another code than the others, or not at all."""
    ranks = [Interruption() for _ in received]
    for rank, number in zip(ranks, received, strict=True):
        if number is not None:
            rank.note(number)
            rank.note(signal.SIGTERM)  # a second one changes nothing
    sums = [sum(column) for column in zip(*(rank.votes() for rank in ranks), strict=True)]
    agreed = Interruption.agreed(sums)
    asked = {number for number in received if number is not None}
    if not asked:
        assert agreed is None
    else:
        assert agreed is not None
        assert agreed.signal == min(asked, key=STOP_SIGNALS.index)
        assert 0 <= agreed.seconds < 5


def test_a_run_that_lost_its_directory_is_not_preempted() -> None:
    """Broken: a launcher starts it again, beside the run that has taken over."""
    interruption = Interruption()
    interruption.note(signal.SIGTERM)
    interruption.taken_over = True
    agreed = Interruption.agreed(interruption.votes())
    assert agreed is not None
    assert agreed.signal is None


def start(server: Server, attempt: Path, *words: object, processes: int = 1, harm: list[Harm]) -> Job:
    """A job that leaves its endings in ``attempt``."""
    attempt.mkdir()
    variables = {ATTEMPT_VARIABLE: str(attempt)}
    return server.start(*words, processes=processes, harm=harm, variables=variables)


def causes(attempt: Path) -> dict[int, str]:
    return {rank: ending.cause for rank, ending in read_endings(attempt).items()}


@pytest.fixture(scope="module")
def whole(server: Server, lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    server.run(*training(lines_arrow, run, processes=2), processes=2)
    return run


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"), "cuda:0"),
        (RuntimeError("CUDA error: out of memory"), "cuda:0"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuda:0"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "this machine",
        ),
        (MemoryError(), "this machine"),
    ],
)
def test_torch_s_ways_to_say_that_memory_has_run_out(error: Exception, place: str) -> None:
    assert memory_exhausted(error)
    options = Train(batch_size=16, global_batch_size=64)
    sentence = memory_sentence(error, options, device="cuda:0", micro_batch=(16, 2350), saved=None)
    assert sentence.startswith(
        f"Out of memory on {place} in a micro-batch of 16 lines, 2350 columns wide; start again with "
        "`-B 8 --global-batch-size 64` ("
    )


@pytest.mark.parametrize(
    ("options", "saved", "remedy"),
    [
        (Train(batch_size=16, global_batch_size=64), "a.ckpt", "--resume model -B 8` ("),
        (Train(batch_size=1, global_batch_size=64), "a.ckpt", "--resume model` on a device with more"),
        (Train(batch_size=1, global_batch_size=64), None, "start again on a device with more"),
        (
            Train(batch_size=0, batch_pixels=4000, accumulate_grad_batches=2),
            None,
            "`--batch-pixels 2000 --accumulate-grad-batches 4`",
        ),
        (Train(batch_size=0, batch_pixels=4000), "a.ckpt", "--resume model --batch-pixels 2000` ("),
    ],
)
def test_what_helps_against_want_of_memory_keeps_the_global_steps(
    options: Train, saved: str | None, remedy: str
) -> None:
    """Broken: who does as the sentence says trains another curve, or runs out of memory again."""
    path = None if saved is None else options.checkpoint_path / saved
    sentence = memory_sentence(MemoryError(), options, device="cpu", micro_batch=None, saved=path)
    assert remedy in sentence


def test_other_errors_are_no_want_of_memory() -> None:
    assert not memory_exhausted(RuntimeError("Connection closed by peer"))
    assert not memory_exhausted(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("harm", "ended_by", "step"),
    [
        pytest.param(at(3, "usr2", rank=1), signal.SIGUSR2, 3, id="SIGUSR2 to one"),
        pytest.param(
            [*at(3, "term"), *at(3, "usr1", rank=1)], signal.SIGUSR1, 3, id="another signal to each"
        ),
        pytest.param(
            at(2, "usr1", rank=1, place=DECODING), signal.SIGUSR1, STEPS_AN_EPOCH, id="in a validation"
        ),
    ],
)
def test_a_signal_to_one_process_ends_all_with_its_code_and_the_step_saved(
    server: Server,
    whole: Path,
    lines_arrow: Path,
    tmp_path: Path,
    harm: list[Harm],
    ended_by: signal.Signals,
    step: int,
) -> None:
    """Broken: a launcher counts a preemption as a failure, or what was done since the last save is lost."""
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    job = start(server, attempt, *training(lines_arrow, run, processes=2), processes=2, harm=harm)
    assert job.wait() == [128 + ended_by] * 2
    newest = newest_first(run)[0]
    assert newest.facts is not None
    assert newest.facts.step == step
    way_on = f"go on from {newest.path.name} with `ketos train --resume {run}`."
    assert job.errors == [f"Error: Interrupted by {ended_by.name}; {way_on}"]
    event = rows(run / "events.jsonl")[-1]
    assert (event["event"], event["signal"], event["step"]) == ("preempt", ended_by.name, step)
    assert 0 <= event["seconds"] < 60
    assert causes(attempt) == {0: "preempted", 1: "preempted"}
    assert not (run / "lease.json").exists()
    server.run("train", "--resume", run, processes=2)
    assert differences(whole, run) == []


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(at(1, "term", place=WRITING), id="while saving"),
        pytest.param(at(1, "term", place=LEAVING), id="after saving"),
    ],
)
def test_more_signals_do_not_break_the_save(
    server: Server, lines_arrow: Path, tmp_path: Path, second: list[Harm]
) -> None:
    """Launchers send SIGTERM to all once one process has left; SLURM sends it after the notice."""
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    job = start(server, attempt, *training(lines_arrow, run), harm=[*at(3, "usr2"), *second])
    assert job.wait() == [128 + signal.SIGUSR2]
    assert checkpoints(run) == ["last.ckpt", "step_00000003.ckpt"]
    assert causes(attempt) == {0: "preempted"}


@pytest.mark.parametrize(
    ("place", "code"), [("distrib.training.run:fit", -signal.SIGTERM), (LOADING, 128 + signal.SIGTERM)]
)
def test_a_signal_before_the_first_step_leaves_a_directory_that_can_be_used(
    server: Server, lines_arrow: Path, tmp_path: Path, place: str, code: int
) -> None:
    words = training(lines_arrow, tmp_path / "run", epochs=1)
    job = server.start(*words, harm=at(1, "term", place=place))
    assert job.wait() == [code]
    assert ("Nothing had been saved yet" in job.output) == (code > 0)
    server.run(*words)


def test_readers_live_on_when_the_signal_comes_to_all_processes(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    """SLURM signals all processes of a step. Broken: the run fails for want of lines before it has saved."""
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    words = [
        word if word != "--workers" else "--workers=1" for word in training(lines_arrow, run, epochs=500)
    ]
    del words[1]  # the 0 that had followed
    job = start(server, attempt, *words, harm=[])
    job.wait_for((run / "last.ckpt").exists)
    os.killpg(job.pids[0], signal.SIGUSR2)
    assert job.wait() == [128 + signal.SIGUSR2]
    assert causes(attempt) == {0: "preempted"}


def test_ctrl_c_is_a_signal_as_well(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    job = start(server, attempt, *training(lines_arrow, run), harm=at(3, "interrupt"))
    assert job.wait() == [128 + signal.SIGINT]
    assert f"go on from checkpoint_abort.ckpt with `ketos train --resume {run}`" in job.errors[0]
    assert causes(attempt) == {0: "preempted"}


def test_a_run_whose_directory_was_taken_over_says_by_whom(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    job = start(server, attempt, *training(lines_arrow, run, processes=2, epochs=500), processes=2, harm=[])
    job.wait_for((run / "last.ckpt").exists)
    other = LeaseFile(run, Holder.here({"SLURM_JOB_ID": "77"}, interval=60.0))
    assert other.claim(lease_in_force(run))
    assert job.wait() == [1, 1]
    (sentence,) = job.errors
    assert "was taken over by another run" in sentence
    assert f"process {os.getpid()} " in sentence
    assert causes(attempt) == {0: "run", 1: "peer"}
    assert "preempt" not in [row["event"] for row in rows(run / "events.jsonl")]


def test_the_processes_that_are_left_say_that_another_has_gone(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    words = training(lines_arrow, run, processes=2)
    job = start(server, attempt, *words, processes=2, harm=at(3, "kill", rank=1))
    assert job.wait() == [1, -signal.SIGKILL]
    assert causes(attempt) == {0: "peer"}
    assert "Another process of this job has ended" in read_endings(attempt)[0].sentence


def test_a_process_out_of_memory_says_what_helps(server: Server, lines_arrow: Path, tmp_path: Path) -> None:
    """Broken: the launcher cannot tell it from a bug, or the sentence names options that do not go on."""
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    job = start(server, attempt, *training(lines_arrow, run, "--save-steps", 2), harm=at(5, "memory"))
    assert job.wait() == [1]
    (ending,) = read_endings(attempt).values()
    assert (ending.cause, ending.exit_code, ending.rank) == ("memory", 1, 0)
    assert "Out of memory on this machine in a micro-batch of 4 lines, " in ending.sentence
    assert f"with `ketos train --resume {run} -B 2` (" in ending.sentence
    assert "`ketos launch --auto-batch`" in ending.sentence
    server.run("train", "--resume", run, "-B", 2)
    lines = {row["step"]: row["lines"] for row in rows(run / "steps.jsonl")}
    assert Counter(lines.values()) == {4: 18, 2: 2}  # an epoch has 38 lines


def test_one_of_two_processes_out_of_memory_names_the_whole_step(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    words = training(lines_arrow, run, processes=2)
    job = start(server, attempt, *words, processes=2, harm=at(1, "memory", rank=1))
    assert job.wait() == [1, 1]
    assert causes(attempt) == {0: "peer", 1: "memory"}
    assert "start again with `-B 1 --global-batch-size 4`" in read_endings(attempt)[1].sentence


@pytest.mark.slow
def test_all_say_why_they_end_though_torchrun_ends_whoever_is_left(lines_arrow: Path, tmp_path: Path) -> None:
    """Broken: the SIGTERM that follows the first process that leaves cuts off what the other has to say."""
    run, attempt = tmp_path / "run", tmp_path / "attempt"
    attempt.mkdir()
    words = training(lines_arrow, run, processes=2, epochs=500)
    variables = {ATTEMPT_VARIABLE: str(attempt)}
    with under_torchrun(2, *words, printed=tmp_path / "printed", variables=variables) as job:
        job.wait_for((run / "last.ckpt").exists)
        os.kill(job.rank(1), signal.SIGUSR2)
        job.ends_within(30)
    codes = {rank: ending.exit_code for rank, ending in read_endings(attempt).items()}
    assert codes == {0: 140, 1: 140}
    assert len(job.errors) == 1


def test_bad_input_of_a_job_is_told_by_the_process_that_found_it(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    attempt = tmp_path / "attempt"
    words = training(lines_arrow, tmp_path / "run", "-N", "many", processes=2)
    job = start(server, attempt, *words, processes=2, harm=[])
    assert job.wait() == [2, 2]
    assert causes(attempt) == {0: "input", 1: "input"}
    ending = Ending(**json.loads((attempt / "rank-1.json").read_text()))
    assert "many" in ending.sentence
