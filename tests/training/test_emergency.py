"""Whatever ends a run, what it has done is kept, and it goes on as if nothing had happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distrib.runtime.checkpoints.contents import STATE_KEY
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import newest_first
from distrib.stream.ledger_report import verify_ledger

from .comparing import DECODING, LOSS, STEPS_AN_EPOCH, at, checkpoints, differences, kinds, training
from .forked import Harm, Server
from .jobs import kill, under_torchrun
from .launching import rows

ABORT = "checkpoint_abort.ckpt"
OFTEN = ("-F", 0.3)
"""Validations after steps 3, 6 and 9 of each epoch."""

SIGTERM_SAVED = 143
"""The exit code of processes that SIGTERM has ended and that have saved what they did."""

NEXT_EPOCH = STEPS_AN_EPOCH + 1
"""The number of the first step of the second epoch, from 1."""

Whole = Callable[[int], Path]


@pytest.fixture(scope="module")
def whole(server: Server, lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run that nothing happened to, by its number of processes."""
    runs: dict[int, Path] = {}

    def of(processes: int) -> Path:
        if processes not in runs:
            runs[processes] = tmp_path_factory.mktemp("whole") / "run"
            server.run(
                *training(lines_arrow, runs[processes], *OFTEN, processes=processes), processes=processes
            )
        return runs[processes]

    return of


@pytest.mark.parametrize(
    ("harm", "newest"),
    [
        pytest.param(at(3, "raise"), ABORT, id="in a step"),
        pytest.param(at(6, "interrupt"), ABORT, id="Ctrl-C"),
        pytest.param(at(NEXT_EPOCH, "raise"), "step_00000010", id="in an epoch's first step"),
        pytest.param(at(1, "raise", place=DECODING), ABORT, id="in the first validation"),
        pytest.param(at(8, "interrupt", place=DECODING), ABORT, id="in the second validation"),
    ],
)
def test_an_error_costs_nothing_of_what_was_done(
    server: Server, whole: Whole, lines_arrow: Path, tmp_path: Path, harm: list[Harm], newest: str
) -> None:
    directory = tmp_path / "run"
    job = server.start(*training(lines_arrow, directory, *OFTEN), harm=harm)
    assert job.wait() == [130 if harm[0].do == "interrupt" else 1]
    assert len(job.errors) == 1
    assert newest_first(directory)[0].path.name.startswith(newest)
    server.run("train", "--resume", directory)
    assert differences(whole(1), directory) == []


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(at(1, "raise"), id="in the very first step"),
        pytest.param(at(2, "raise", place="torch.optim:AdamW.step", after=True), id="while weights change"),
        pytest.param(
            at(2, "raise", place="distrib.stream.ledger:LedgerWriter.append"), id="with a step not on record"
        ),
    ],
)
def test_nothing_is_saved_that_is_not_whole(
    server: Server, lines_arrow: Path, tmp_path: Path, harm: list[Harm]
) -> None:
    assert server.start(*training(lines_arrow, tmp_path / "run"), harm=harm).wait() == [1]
    assert checkpoints(tmp_path / "run") == []


def test_a_checkpoint_loaded_by_half_is_not_saved_again(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    server.start(*training(lines_arrow, directory), harm=at(3, "raise")).wait()
    before = (directory / ABORT).read_bytes()
    loading = at(1, "raise", place="distrib.runtime.strategies.plain:load_whole_state")
    assert server.start("train", "--resume", directory, harm=loading).wait() == [1]
    assert (directory / ABORT).read_bytes() == before


@pytest.mark.parametrize(
    ("harm", "newest"),
    [
        pytest.param(at(3, "kill", rank=1), ABORT, id="another process killed"),
        pytest.param(
            at(5, "kill", rank=1, place=DECODING), ABORT, id="killed in a validation", marks=pytest.mark.slow
        ),
        pytest.param(at(7, "kill"), "checkpoint_00-", id="rank zero killed", marks=pytest.mark.slow),
        pytest.param(at(6, "raise", rank=1), ABORT, id="an error in another", marks=pytest.mark.slow),
        pytest.param(
            at(6, "raise", rank=1, after=True, place="torch.optim:AdamW.step"),
            "checkpoint_00-",
            id="an error after the weights changed",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rank_zero_saves_alone_when_another_process_is_gone(
    server: Server, whole: Whole, lines_arrow: Path, tmp_path: Path, harm: list[Harm], newest: str
) -> None:
    """A collective in the handler of an error would wait for a process that does not come any more."""
    directory = tmp_path / "run"
    job = server.start(*training(lines_arrow, directory, *OFTEN, processes=2), processes=2, harm=harm)
    job.wait_for(lambda: any(job.codes()))
    ended = time.monotonic()
    codes = job.wait(15 + (time.monotonic() - ended))
    assert 1 in codes
    sentences = [each for each in job.errors if "Another process of this job has ended" in each]
    assert len(sentences) == 1
    newest_name = newest_first(directory)[0].path.name
    assert newest_name.startswith(newest)
    assert f"go on from {newest_name} with `ketos train --resume {directory}`" in sentences[0]
    server.run("train", "--resume", directory, processes=2)
    assert differences(whole(2), directory) == []


@pytest.mark.slow
def test_a_job_under_torchrun_is_over_soon_after_one_of_its_processes(
    lines_arrow: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    words = training(lines_arrow, directory, processes=2, epochs=500)
    with under_torchrun(2, *words, printed=tmp_path / "printed") as job:
        job.wait_for(lambda: (directory / "last.ckpt").exists())
        kill(job.rank(1))
        job.ends_within(15)
    assert len(job.errors) == 1
    assert "Another process of this job has ended" in job.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("harm", [at(3, "kill", rank=1), at(3, "raise")], ids=["killed", "error"])
def test_processes_that_share_the_state_save_nothing_without_each_other(
    server: Server, lines_arrow: Path, tmp_path: Path, harm: list[Harm]
) -> None:
    words = training(lines_arrow, tmp_path / "run", "--strategy", "fsdp", processes=2)
    job = server.start(*words, processes=2, harm=harm)
    assert 1 in job.wait(60)
    assert checkpoints(tmp_path / "run") == []
    assert not list((tmp_path / "run").glob(".*.part"))


@pytest.mark.parametrize(
    ("processes", "harm", "step"),
    [
        pytest.param(1, at(3, "term"), 3, id="in a step", marks=pytest.mark.slow),
        pytest.param(
            1,
            at(STEPS_AN_EPOCH, "term"),
            STEPS_AN_EPOCH,
            id="in an epoch's last step",
            marks=pytest.mark.slow,
        ),
        pytest.param(1, at(NEXT_EPOCH, "term"), NEXT_EPOCH, id="in an epoch's first step"),
        pytest.param(1, at(4, "term", place=DECODING), 6, id="in a validation"),
        pytest.param(2, at(3, "term", rank=1), 3, id="to one of two"),
        pytest.param(
            2,
            at(4, "term", rank=1, place=DECODING),
            6,
            id="to one of two in a validation",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sigterm_ends_a_job_after_a_step_that_it_saves(
    server: Server,
    whole: Whole,
    lines_arrow: Path,
    tmp_path: Path,
    processes: int,
    harm: list[Harm],
    step: int,
) -> None:
    directory = tmp_path / "run"
    words = training(lines_arrow, directory, *OFTEN, processes=processes)
    job = server.start(*words, processes=processes, harm=harm)
    assert job.wait() == [SIGTERM_SAVED] * processes
    assert len(job.errors) == 1
    newest = newest_first(directory)[0]
    assert newest.facts is not None
    assert newest.facts.step == step
    assert newest.path.name in job.errors[0]
    if step != STEPS_AN_EPOCH:  # which is kept anyway
        assert newest.facts.kind == "stop"
        assert kinds(directory, "preempt", "save")[-2:] == ["save", "preempt"]
    server.run("train", "--resume", directory, processes=processes)
    assert differences(whole(processes), directory) == []


@pytest.mark.slow
@pytest.mark.parametrize("harm", [at(3, "term", rank=1), at(3, "term", place=DECODING)])
def test_sigterm_ends_processes_that_share_the_state(
    server: Server, lines_arrow: Path, tmp_path: Path, harm: list[Harm]
) -> None:
    sharded = (*OFTEN, "--strategy", "fsdp")
    server.run(*training(lines_arrow, tmp_path / "whole", *sharded, processes=2), processes=2)
    job = server.start(
        *training(lines_arrow, tmp_path / "run", *sharded, processes=2), processes=2, harm=harm
    )
    assert job.wait() == [SIGTERM_SAVED] * 2
    server.run("train", "--resume", tmp_path / "run", processes=2)
    assert differences(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_without_a_finite_loss_changes_nothing(
    server: Server, lines_arrow: Path, tmp_path: Path, processes: int
) -> None:
    directory, bad = tmp_path / "run", (3, 4, 6, STEPS_AN_EPOCH)
    server.run(
        *training(lines_arrow, directory, "--save-steps", 1, "--keep-last", 9, processes=processes, epochs=1),
        processes=processes,
        harm=[Harm(place=LOSS, calls=bad, do="infinite", rank=processes - 1)],
    )
    events = [row for row in rows(directory / "events.jsonl") if row["event"] == "bad_step"]
    assert [(row["step"], row["in_row"]) for row in events] == [(2, 1), (3, 2), (5, 1), (9, 1)]
    # Nothing new is to be kept of them; the step after the first two goes on where the one before had been.
    saved = [open_checkpoint(directory / name) for name in checkpoints(directory) if "step" in name]
    assert [each.common[STATE_KEY]["stream"]["number"] for each in saved] == [1, 2, 5, 7, 8, 9]
    assert all(float(saved[2].tensor(key)) == 3 for key in saved[2].shapes if key.startswith("step/"))
    after_last_bad = open_checkpoint(directory / "last.ckpt")
    assert after_last_bad.shapes.keys() == saved[-1].shapes.keys()
    assert all(torch.equal(after_last_bad.tensor(key), saved[-1].tensor(key)) for key in saved[-1].shapes)
    (validation,) = rows(directory / "metrics.jsonl")
    learned = [row for row in rows(directory / "steps.jsonl") if row["step"] + 1 not in bad]
    mean = sum(row["loss"] * row["lines"] for row in learned) / sum(row["lines"] for row in learned)
    assert validation["train_loss"] == pytest.approx(mean, rel=1e-5)
    (epoch,) = verify_ledger(directory / "ledger").epochs
    assert epoch.complete


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_too_many_bad_steps_in_a_row_end_a_run_and_name_the_last_good_checkpoint(
    server: Server, lines_arrow: Path, tmp_path: Path, processes: int
) -> None:
    """Also over a restart; and what is named is no later, broken or removed checkpoint."""
    directory = tmp_path / "run"
    words = training(
        lines_arrow, directory, "--save-steps", 2, "--max-bad-steps", 5, processes=processes, epochs=3
    )
    rank = processes - 1
    bad = Harm(place=LOSS, calls=tuple(range(14, 99)), do="infinite", rank=rank)
    job = server.start(*words, processes=processes, harm=[bad, *at(16, "term", rank=rank)])
    assert job.wait() == [SIGTERM_SAVED] * processes
    stopped = newest_first(directory)[0]
    assert stopped.facts is not None
    assert (stopped.facts.kind, stopped.facts.step) == ("stop", 16)
    assert open_checkpoint(stopped.path).common[STATE_KEY]["counts"]["skipped"] == [3, 3]
    bad = Harm(place=LOSS, calls=tuple(range(1, 99)), do="infinite", rank=rank)
    job = server.start("train", "--resume", directory, processes=processes, harm=[bad])
    assert job.wait() == [1] * processes
    (sentence,) = job.errors
    assert "5 steps in a row had no finite loss and gradient" in sentence
    good = directory / "step_00000012.ckpt"
    assert f"`ketos train --resume {good}`" in sentence
    assert ABORT not in checkpoints(directory)
    server.run("train", "--resume", good, processes=processes)
    report = verify_ledger(directory / "ledger")
    assert [epoch.complete for epoch in report.epochs] == [True] * 3


def test_a_validation_after_nothing_but_bad_steps_goes_on(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    """There is no loss then; it is not one that ought to end the run."""
    bad = Harm(place=LOSS, calls=(1, 2, 3), do="infinite")
    server.run(*training(lines_arrow, tmp_path / "run", *OFTEN, epochs=1), harm=[bad])
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    ends = [json.loads(row)["train_loss"] for row in text.splitlines()]
    assert [each == "nan" for each in ends] == [True, False, False, False]
