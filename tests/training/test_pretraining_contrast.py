"""The contrastive loss is that of its definition; padding, the target and its like are no negatives."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distrib.runtime.processes import Processes
from distrib.runtime.topology import Topology
from distrib.training.pretraining.contrast import Contrast, against_pool, unit, within_lines
from distrib.training.pretraining.drawing import draw_below
from distrib.training.pretraining.pool import share_columns

K = 20
COUNTS = (9, 4, 2, 0)


def splitmix(state: int) -> int:
    """The next number of SplitMix64, as its authors publish it."""
    mask = (1 << 64) - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@settings(max_examples=50, deadline=None)
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), below=st.integers(0, 2**31 - 1)
)
def test_draws_are_those_of_splitmix64_on_every_device(keys: list[int], below: int) -> None:
    """Other draws on another device or batch would make another run of the same seed."""
    found = draw_below(torch.tensor(keys), 5, torch.full((len(keys),), below))
    for key, row in zip(keys, found.tolist(), strict=True):
        states = [(key + number * 0x9E3779B97F4A7C15) % (1 << 64) for number in range(5)]
        assert row == [(splitmix(state) >> 33) * below >> 31 for state in states]
        assert all(0 <= each < max(below, 1) for each in row)


def columns(seed: int = 0, dimensions: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    context, targets = torch.randn((2, len(COUNTS), 9, dimensions), generator=generator)
    real = torch.arange(9) < torch.tensor(COUNTS)[:, None]
    return context, targets, real, torch.tensor([5, 6, 7, 8])


def compare(
    context: Tensor, targets: Tensor, real: Tensor, keys: Tensor, temperature: float = 0.1
) -> Contrast:
    return within_lines(context, targets, real, keys, negatives=K, temperature=temperature)


def drawn_negatives(keys: Tensor, row: int, own: int) -> list[int]:
    """Which columns of its line a column is compared with."""
    count = COUNTS[row]
    all_drawn = draw_below(keys[row : row + 1], 9 * K, torch.tensor([count - 1]))[0].view(9, K)[own]
    return [each + (each >= own) for each in all_drawn.tolist()]


def test_the_loss_is_the_cross_entropy_of_choosing_the_target() -> None:
    """Each term by its definition, a column at a time: cosine similarity over temperature, K negatives."""
    context, targets, real, keys = columns()
    found = compare(context, targets, real, keys, temperature=0.3)
    for row, count in enumerate(COUNTS):
        for own in range(count if count > 1 else 0):
            others = drawn_negatives(keys, row, own)
            assert set(others) <= set(range(count)) - {own}
            chosen = targets[row, [own, *others]]
            logits = torch.cosine_similarity(context[row, own][None], chosen, dim=1) / 0.3
            expected = torch.nn.functional.cross_entropy(logits[None], torch.tensor([0]))
            assert float(found.losses[row, own]) == pytest.approx(float(expected), abs=1e-5)
            assert bool(found.right[row, own]) == bool((logits[0] > logits[1:]).all())
    assert not found.losses[~real].any()
    assert not found.right[~real].any()


def test_padding_is_never_a_negative() -> None:
    """What stands past a line's end would be told apart from ink by its emptiness alone."""
    context, targets, real, keys = columns()
    expected = compare(context, targets, real, keys)
    context, targets = context.clone(), targets.clone()
    context[~real], targets[~real] = 1e3, -1e3
    found = compare(context, targets, real, keys)
    assert torch.equal(found.losses, expected.losses)


def test_a_line_gives_the_same_loss_in_any_batch() -> None:
    """The sum over a step would depend on the number of processes."""
    context, targets, real, keys = columns()
    together = compare(context, targets, real, keys)
    for row, count in enumerate(COUNTS[:3]):
        own = slice(row, row + 1)
        alone = compare(context[own, :count], targets[own, :count], real[own, :count], keys[own])
        torch.testing.assert_close(alone.losses[0], together.losses[row, :count], atol=1e-6, rtol=0)


def test_negatives_like_the_target_do_not_count() -> None:
    """Empty paper looks the same everywhere: nobody could tell which piece of it was hidden."""
    context, targets, real, keys = columns(dimensions=64)
    targets[0, 1:] = targets[0, 0] + 1e-6  # column 0 can be told from nothing
    targets[1, 1] = targets[1, 0]
    found = compare(context, targets, real, keys)
    torch.testing.assert_close(found.losses[0], torch.full((9,), math.log(1 + K)))
    assert not found.right[0].any()
    others = [each for each in drawn_negatives(keys, 1, 0) if each != 1]
    chosen = targets[1, [0, *others]]
    logits = torch.cosine_similarity(context[1, 0][None], chosen, dim=1) / 0.1
    assert float(found.losses[1, 0]) == pytest.approx(float(logits.logsumexp(0) - logits[0]), abs=1e-4)


def test_collapse_is_no_solution_and_gives_no_gradient() -> None:
    """Were equal negatives just left out, a network that makes all columns alike would score 100 %."""
    context, _, real, keys = columns()
    context.requires_grad_(True)
    targets = torch.ones_like(context, requires_grad=True)
    found = compare(context, targets, real, keys)
    found.losses.sum().backward()
    assert float(found.losses[0, 0].detach()) == pytest.approx(math.log(1 + K))
    assert context.grad is not None
    assert bool(torch.isfinite(context.grad).all())
    assert not context.grad.any()


def test_rounding_of_features_does_not_change_which_negatives_count() -> None:
    """Features differ in the last bits with the batch they are in, which must not decide about the loss."""
    context, targets, real, keys = columns(dimensions=64)
    targets = targets[:, :1] + torch.randn(targets.shape) * torch.logspace(-5, -1, 9)[:, None]
    noise = 1 + 2e-7 * torch.randn(targets.shape)
    expected = compare(context, targets, real, keys).losses.double().sum()
    found = compare(context, targets * noise, real, keys).losses.double().sum()
    assert float(found) == pytest.approx(float(expected), rel=2e-5)


def test_nothing_to_predict_is_a_loss_of_zero_with_a_gradient() -> None:
    """Strategies wait for a gradient of every parameter, also where all lines are too short."""
    context = torch.randn(2, 0, 16, requires_grad=True)
    found = compare(context, context * 2, torch.ones(2, 0, dtype=torch.bool), torch.tensor([1, 2]))
    found.losses.sum().backward()
    assert context.grad is not None


def test_a_pool_of_one_process_holds_columns_of_all_lines_but_never_padding() -> None:
    """--negatives all: other lines' columns are compared with as well."""
    context, targets, real, keys = columns()
    targets = unit(targets)
    targets[~real] = 7.0
    pool, filled = share_columns(targets, real, keys[:1], negatives=K, processes=Processes(Topology()))
    assert pool.shape == (4 * K, 16)
    assert filled.all()
    assert pool.max() < 2
    near = (pool[:, None] - targets[real]).abs().amax(dim=2).argmin(dim=1)
    assert set(near.tolist()) == set(range(int(real.sum())))
    found = against_pool(context, targets, real, keys, pool, filled=filled, negatives=K, temperature=0.1)
    for own in range(9):
        drawn = draw_below(keys[:1], 9 * K, torch.tensor([4 * K]))[0].view(9, K)[own]
        chosen = torch.stack([each for each in pool[drawn] if not torch.allclose(each, targets[0, own])])
        logits = torch.cosine_similarity(context[0, own][None], torch.cat([targets[:1, own], chosen]), dim=1)
        expected = (logits / 0.1).logsumexp(0) - logits[0] / 0.1
        assert float(found.losses[0, own]) == pytest.approx(float(expected), abs=1e-4)


class Thread(Processes):
    """A process that is a thread of this one; ``shared`` has a place for each."""

    def __init__(self, rank: int, shared: list[Tensor], meeting: threading.Barrier) -> None:
        super().__init__(Topology(rank=rank, world_size=len(shared), local_world_size=len(shared)))
        self._shared, self._meeting = shared, meeting

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        self._shared[self.topology.rank] = tensor.clone()
        self._meeting.wait()
        tensor.copy_(sum(self._shared, torch.zeros_like(tensor)))
        self._meeting.wait()
        return tensor


def test_the_gradient_through_a_pool_is_that_of_the_loss_of_all_processes() -> None:
    """Were it that of a process's own loss alone, what is learned would depend on how many there are."""
    world = 3
    batches = [columns(seed) for seed in range(world)]
    batches[1] = batches[1][0][:, :0], batches[1][1][:, :0], batches[1][2][:, :0], batches[1][3]  # no line
    whole = [unit(targets).requires_grad_(True) for _, targets, _, _ in batches]
    apart = [targets.detach().clone().requires_grad_(True) for targets in whole]
    shared, meeting = [torch.zeros(0)] * world, threading.Barrier(world, timeout=60)

    def compared(rank: int, targets: Tensor, pool: Tensor, filled: Tensor) -> Tensor:
        context, _, real, keys = batches[rank]
        given = {"filled": filled, "negatives": K, "temperature": 0.3}
        return against_pool(context, targets, real, keys, pool, **given).losses.sum()

    def run(rank: int) -> None:
        _, _, real, keys = batches[rank]
        processes = Thread(rank, shared, meeting)
        pool, filled = share_columns(apart[rank], real, keys[:1], negatives=K, processes=processes)
        compared(rank, apart[rank], pool, filled).backward()

    with ThreadPoolExecutor(world) as threads:
        list(threads.map(run, range(world)))
    alone = Processes(Topology())
    parts = [
        share_columns(targets, real, keys[:1], negatives=K, processes=alone)
        for targets, (_, _, real, keys) in zip(whole, batches, strict=True)
    ]
    pool, filled = (torch.cat(each) for each in zip(*parts, strict=True))
    assert filled.sum() == 2 * 4 * K
    torch.stack([compared(rank, whole[rank], pool, filled) for rank in range(world)]).sum().backward()
    for ours, theirs in zip(apart, whole, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_slots_that_nobody_filled_are_not_drawn() -> None:
    """A process without lines gives none, and zeros are no columns."""
    context, targets, real, keys = columns()
    pool = torch.cat([torch.full((5, 16), 9.0), unit(targets[0, :6])])
    filled = torch.arange(11) >= 5
    found = against_pool(context, targets, real, keys, pool, filled=filled, negatives=K, temperature=0.1)
    spoilt = against_pool(
        context,
        targets,
        real,
        keys,
        pool * filled[:, None] * 1.0,
        filled=filled,
        negatives=K,
        temperature=0.1,
    )
    assert torch.equal(found.losses, spoilt.losses)
