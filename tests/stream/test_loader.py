"""The loader hands over exactly the plan's steps, from any step on, whatever reads them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.errors import InputError, RunError
from distrib.stream.batches import LineBatch, StepBatch
from distrib.stream.loader import EvaluationLoader, Share, TrainingLoader, reader_deaths
from distrib.stream.plan import PlanSettings, plan_facts

HEIGHT = 10


class Reader:
    """Stands for a BatchReader: names the lines it was asked for; line ``deadly`` kills its process, or
    raises ``error``."""

    def __init__(self, deadly: int = -1, error: Exception | None = None) -> None:
        self.deadly, self.error = deadly, error

    def __call__(self, lines: np.ndarray[Any, np.dtype[np.int64]]) -> LineBatch:
        if self.deadly in lines and self.error is not None:
            raise self.error
        if self.deadly in lines:
            os.kill(os.getpid(), signal.SIGKILL)
        nothing = torch.zeros(0, dtype=torch.int64)
        return LineBatch(
            images=torch.zeros((0, 1, 0, 0), dtype=torch.uint8),
            widths=nothing,
            labels=nothing,
            label_lengths=nothing,
            required_steps=nothing,
            lines=torch.from_numpy(np.asarray(lines)),
            texts=[],
            bad=[],
        )


def widths_of(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.random.default_rng(seed).integers(5, 200, count).astype(np.int32)


def training_loader(
    count: int,
    *,
    share: Share | None = None,
    shards: int = 3,
    settings: PlanSettings | None = None,
    workers: int = 0,
    reader: Reader | None = None,
    first_line: int = 100,
    **options: Any,
) -> TrainingLoader:
    """A loader of ``count`` lines numbered from ``first_line``."""
    settings = settings or PlanSettings(global_lines=7, global_pixels=0, window=40, height=HEIGHT)
    sizes = np.full(shards, count // shards, dtype=np.int64)
    sizes[-1] += count - sizes.sum()
    return TrainingLoader(
        reader or Reader(),  # type: ignore[arg-type]
        lines=np.arange(first_line, first_line + count, dtype=np.int64),
        widths=widths_of(count),
        shard_sizes=sizes,
        settings=settings,
        seed=1,
        share=share or Share(lines=2),
        workers=workers,
        facts=plan_facts(lines=count, data="d", settings=settings, seed=1),
        **options,
    )


def lines_of(step: StepBatch) -> list[int]:
    return [line for batch in step.micro_batches for line in batch.lines.tolist()]


@given(
    count=st.integers(1, 120),
    world_size=st.integers(1, 5),
    lines=st.integers(0, 4),
    pixels=st.sampled_from([0, 1, 500, 5000]),
    global_lines=st.integers(1, 30),
    window=st.integers(1, 150),
)
@settings(max_examples=20, deadline=None)
def test_processes_share_every_step_of_the_plan_whatever_their_number(
    count: int, world_size: int, lines: int, pixels: int, global_lines: int, window: int
) -> None:
    cut = PlanSettings(global_lines=global_lines, global_pixels=0, window=window, height=HEIGHT)
    shares = [
        Share(rank=rank, world_size=world_size, lines=lines, pixels=pixels) for rank in range(world_size)
    ]
    ranks = [list(training_loader(count, share=share, settings=cut)) for share in shares]
    alone = list(training_loader(count, settings=cut))
    seen = []
    for whole, *parts in zip(alone, *ranks, strict=True):
        together = sorted(line for part in parts for line in lines_of(part))
        assert together == sorted(lines_of(whole))
        # Each process takes part in each collective of the step.
        assert len({len(part.micro_batches) for part in parts}) == 1
        assert len({(part.epoch, part.step, part.number, part.last) for part in [whole, *parts]}) == 1
        seen += together
    assert sorted(seen) == list(range(100, 100 + count))
    assert [step.last for step in alone] == [False] * (len(alone) - 1) + [True]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_is_the_rest_of_the_whole_one(workers: int) -> None:
    """State counts what was handed over, not what workers have read ahead."""
    whole = training_loader(60)
    expected = [lines_of(step) for _ in range(2) for step in whole]
    loader = training_loader(60, workers=workers)
    steps = len(loader)
    begun = []
    for step in loader:
        begun.append(lines_of(step))
        if len(begun) == 4:
            break
    state = loader.state_dict()
    assert (state["epoch"], state["step"], state["number"]) == (0, 4, 4)
    resumed = training_loader(60, workers=workers)
    resumed.load_state_dict(state)
    rest = [step for _ in range(2) for step in resumed]
    assert begun + [lines_of(step) for step in rest] == expected
    assert [step.number for step in rest] == list(range(4, 2 * steps))
    assert [step.epoch for step in rest] == [0] * (steps - 4) + [1] * steps


def test_epochs_differ_and_repeat_themselves_for_the_same_seed() -> None:
    one, other = training_loader(60), training_loader(60)
    epochs = [[lines_of(step) for step in one] for _ in range(2)]
    assert epochs == [[lines_of(step) for step in other] for _ in range(2)]
    assert epochs[0] != epochs[1]


def test_at_the_end_of_an_epoch_the_state_is_the_start_of_the_next() -> None:
    loader = training_loader(20)
    steps = [loader.state_dict() for _ in loader]
    assert (steps[-1]["epoch"], steps[-1]["step"]) == (1, 0)
    assert loader.number == len(steps)


def test_other_data_or_batches_are_refused_by_name_and_begin_an_epoch_if_wanted() -> None:
    saved = training_loader(60)
    iterator = iter(saved)
    next(iterator)
    state = saved.state_dict()
    same, other = training_loader(60), training_loader(61)
    same.refuse_other(state)
    assert not same.begins_anew(state)
    with pytest.raises(InputError, match=r"\(60 .*then, 61 now\).*--resume-anyway"):
        other.refuse_other(state)
    assert other.begins_anew(state)
    other.load_state_dict(state)
    assert other.state_dict() | {"facts": None} == {"epoch": 1, "step": 0, "number": 1, "facts": None}
    assert sorted(line for step in other for line in lines_of(step)) == list(range(100, 161))


def test_the_shards_of_a_window_are_announced_before_they_are_read() -> None:
    announced: list[list[int]] = []
    cut = PlanSettings(global_lines=5, global_pixels=0, window=20, height=HEIGHT)
    loader = training_loader(80, shards=8, settings=cut, on_shards=lambda shards: announced.append([*shards]))
    for step in loader:
        known = {shard for shards in announced for shard in shards}
        assert {(line - 100) // 10 for line in lines_of(step)} <= known
    assert known == set(range(8))
    # Once a window, not in every step: prefetching would begin anew each time.
    assert len(announced) == 4


def test_a_killed_worker_is_a_sentence_and_no_hang() -> None:
    # In a process of its own: torch reports the death by raising in whatever is going on, such as pytest.
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_until_killed, args=(theirs,))
    process.start()
    assert ours.poll(60), "it hangs"
    kind, sentence = ours.recv()
    process.join(60)
    assert kind == "PeerLost"
    assert "was killed" in sentence
    assert "lessen --workers" in sentence
    assert process.exitcode == 0


def _read_until_killed(connection: Any) -> None:
    try:
        with reader_deaths():
            list(training_loader(30, workers=2, reader=Reader(deadly=117)))
    except Exception as error:
        connection.send((type(error).__name__, str(error)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error",
    [InputError("The index is damaged."), MemoryError("at line 7"), PermissionError(13, "denied", "x.tar")],
    ids=repr,
)
def test_what_ends_the_reading_of_a_worker_comes_out_as_it_is(error: Exception, workers: int) -> None:
    """torch would make its whole traceback the sentence that the user gets."""
    loader = training_loader(30, workers=workers, reader=Reader(deadly=117, error=error))
    raised = None
    try:
        with reader_deaths():
            list(loader)
    except Exception as found:  # what pytest.raises keeps would keep the workers too
        raised = repr(found)
    assert raised == repr(error)


def test_the_death_of_a_worker_is_recognised_wherever_torch_raises_it() -> None:
    with pytest.raises(RunError, match="was killed"), reader_deaths():
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="something else"), reader_deaths():
        raise RuntimeError("something else")


@given(
    count=st.integers(1, 80),
    world_size=st.integers(1, 6),
    lines=st.integers(0, 9),
    pixels=st.sampled_from([0, 1, 3000, 20_000]),
)
@settings(max_examples=20, deadline=None)
def test_evaluation_sees_each_line_once_in_equally_many_bounded_batches(
    count: int, world_size: int, lines: int, pixels: int
) -> None:
    chosen, widths = np.arange(count, dtype=np.int64) * 3, widths_of(count)
    width_of = dict(zip(chosen.tolist(), widths.tolist(), strict=True))
    loaders = [
        EvaluationLoader(
            Reader(),  # type: ignore[arg-type]
            lines=chosen,
            widths=widths,
            share=Share(rank=rank, world_size=world_size, lines=lines, pixels=pixels),
            workers=0,
            height=HEIGHT,
        )
        for rank in range(world_size)
    ]
    ranks = [[batch.lines.tolist() for batch in loader] for loader in loaders]
    assert len({len(batches) for batches in ranks}) == 1
    assert [len(loader) for loader in loaders] == [len(ranks[0])] * world_size
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(line for batch in batches for line in batch) == chosen.tolist()
    for batch in batches:
        assert not lines or len(batch) <= lines
        padded = max(map(width_of.__getitem__, batch), default=0) * HEIGHT * len(batch)
        assert not pixels or len(batch) <= 1 or padded <= pixels
