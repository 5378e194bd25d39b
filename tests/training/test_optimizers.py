"""Optimizers: every option reaches torch's, LAMB is that of its paper, state goes through checkpoints."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrib.config.learning import Train
from distrib.errors import InputError
from distrib.training.lamb import Lamb
from distrib.training.optimization import check_optimizer, make_optimizer

NAMES = ("Adam", "AdamW", "SGD", "RMSprop", "Lamb")
SHAPES = ((4, 3), (5,), (2, 3, 2), ())


def _parameters(seed: int = 0, shapes: Any = SHAPES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _set_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for each in parameters:
        each.grad = torch.randn(each.shape, generator=generator)


def _trained(options: Train, *, steps: int = 4) -> list[torch.Tensor]:
    parameters = _parameters()
    optimizer = make_optimizer([{"params": parameters}], options)
    for step in range(steps):
        _set_gradients(parameters, step)
        optimizer.step()
    return [each.detach() for each in parameters]


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", [{"lrate": 0.02}, {"weight_decay": 0.3}, {"momentum": 0.5}])
def test_no_option_is_ignored(name: Any, option: dict[str, Any]) -> None:
    assert not _same(_trained(Train(optimizer=name)), _trained(Train(optimizer=name, **option)))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("Adam", lambda all_, **given: torch.optim.Adam(all_, betas=(0.8, 0.999), **given)),
        ("AdamW", lambda all_, **given: torch.optim.AdamW(all_, betas=(0.8, 0.999), **given)),
        ("SGD", lambda all_, **given: torch.optim.SGD(all_, momentum=0.8, **given)),
        ("RMSprop", lambda all_, **given: torch.optim.RMSprop(all_, momentum=0.8, **given)),
    ],
)
def test_names_are_those_of_torchs_optimizers(name: Any, theirs: Any) -> None:
    """Fused or not, the update is the one that torch documents."""
    ours = _trained(Train(optimizer=name, lrate=0.01, weight_decay=0.1, momentum=0.8))
    parameters = _parameters()
    optimizer = theirs(parameters, lr=0.01, weight_decay=0.1, foreach=False)
    for step in range(4):
        _set_gradients(parameters, step)
        optimizer.step()
    assert _same(ours, [each.detach() for each in parameters])


@pytest.mark.parametrize("name", NAMES)
def test_groups_keep_their_own_settings(name: Any) -> None:
    """A frozen backbone is a group with a learning rate of 0."""
    frozen, free = _parameters(0), _parameters(1)
    before = [each.detach().clone() for each in (*frozen, *free)]
    groups = [{"params": frozen, "lr": 0.0, "name": "backbone"}, {"params": iter(free)}]
    optimizer = make_optimizer(groups, Train(optimizer=name))
    assert optimizer.param_groups[0]["name"] == "backbone"
    _set_gradients(frozen, 0)
    _set_gradients(free, 1)
    optimizer.step()
    after = [each.detach() for each in (*frozen, *free)]
    assert all(torch.equal(a, b) for a, b in zip(before[:4], after[:4], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before[4:], after[4:], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_on_from_a_checkpoint(name: Any) -> None:
    """Bit for bit, as every optimizer's state and settings are all in its state dict."""
    options = Train(optimizer=name, lrate=0.01, weight_decay=0.1)
    whole = _trained(options, steps=6)
    before = _parameters()
    first = make_optimizer([{"params": before}], options)
    for step in range(3):
        _set_gradients(before, step)
        first.step()
    after = [torch.nn.Parameter(each.detach().clone()) for each in before]
    second = make_optimizer([{"params": after}], options)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(3, 6):
        _set_gradients(after, step)
        second.step()
    assert all(torch.equal(a, b.detach()) for a, b in zip(whole, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_process_without_rows_of_a_parameter_takes_its_steps(name: Any) -> None:
    """Strategies that divide parameters leave some processes none of a short one."""
    parameters = _parameters(shapes=((0, 3), (2,)))
    optimizer = make_optimizer([{"params": parameters}], Train(optimizer=name))
    _set_gradients(parameters, 0)
    optimizer.step()
    assert torch.isfinite(parameters[1]).all()


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_torchs_kernels_are_fused_on_cpus(name: Any) -> None:
    """Otherwise an update takes several times as long."""
    optimizer = make_optimizer([{"params": _parameters()}], Train(optimizer=name))
    assert optimizer.param_groups[0]["fused"]
    assert not getattr(optimizer, "_step_supports_amp_scaling", False), "gradients are clipped before it"


def test_other_devices_are_left_to_torch() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3, device="meta"))]
    optimizer = make_optimizer([{"params": parameters}], Train(optimizer="AdamW"))
    assert not optimizer.param_groups[0]["fused"]


def test_a_momentum_that_forgets_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="--momentum 1"):
        check_optimizer(Train(momentum=1.0))
    check_optimizer(Train())


def _slow_lamb(
    weights: list[np.ndarray[Any, Any]],
    gradients: list[list[np.ndarray[Any, Any]]],
    *,
    lr: float,
    betas: tuple[float, float],
    decay: float,
) -> list[np.ndarray[Any, Any]]:
    """Algorithm 2 of the paper, one element after the other, in double precision."""
    weights = [each.astype(np.float64).reshape(-1).copy() for each in weights]
    means = [[0.0] * len(each) for each in weights]
    squares = [[0.0] * len(each) for each in weights]
    for step, of_step in enumerate(gradients, start=1):
        for layer, gradient in enumerate(of_step):
            x, update = weights[layer], []
            for at, value in enumerate(gradient.reshape(-1).tolist()):
                means[layer][at] = betas[0] * means[layer][at] + (1 - betas[0]) * value
                squares[layer][at] = betas[1] * squares[layer][at] + (1 - betas[1]) * value * value
                mean = means[layer][at] / (1 - betas[0] ** step)
                square = squares[layer][at] / (1 - betas[1] ** step)
                update.append(mean / (square**0.5 + 1e-6) + decay * x[at])
            length, size = sum(u * u for u in update) ** 0.5, sum(w * w for w in x) ** 0.5
            trust = size / length if size > 0 and length > 0 else 1.0
            for at, value in enumerate(update):
                x[at] -= lr * trust * value
    return weights


@given(
    seed=st.integers(0, 1000),
    lr=st.sampled_from([1e-3, 0.1]),
    betas=st.sampled_from([(0.9, 0.999), (0.0, 0.9)]),
    decay=st.sampled_from([0.0, 0.1]),
    steps=st.integers(1, 4),
    zero=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_lamb_is_that_of_the_paper(
    seed: int, lr: float, betas: tuple[float, float], decay: float, steps: int, zero: bool
) -> None:
    """Trust ratios of whole parameters, bias corrections, decoupled decay, and layers that are still 0."""
    parameters = _parameters(seed)
    if zero:
        parameters[1].data.zero_()
    optimizer = Lamb(parameters, lr=lr, betas=betas, weight_decay=decay)
    start, gradients = [each.detach().numpy().copy() for each in parameters], []
    for step in range(steps):
        _set_gradients(parameters, seed + step)
        gradients.append([each.grad.numpy().copy() for each in parameters if each.grad is not None])
        optimizer.step()
    expected = _slow_lamb(start, gradients, lr=lr, betas=betas, decay=decay)
    for found, wanted in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy().reshape(-1), wanted, rtol=2e-4, atol=1e-6)


def test_lamb_keeps_what_checkpoints_expect() -> None:
    """The same kinds as Adam: two tensors of the parameter's shape, and a number on the CPU."""
    parameters = _parameters()
    optimizer = Lamb(parameters)
    _set_gradients(parameters, 0)
    optimizer.step()
    state = optimizer.state[parameters[0]]
    assert {kind: tuple(value.shape) for kind, value in state.items()} == {
        "step": (),
        "exp_avg": (4, 3),
        "exp_avg_sq": (4, 3),
    }
    assert float(state["step"]) == 1.0


def test_lamb_counts_the_steps_of_each_parameter_by_itself() -> None:
    """One that was frozen begins as if new, with its own bias correction."""
    parameters = _parameters()
    alone = [torch.nn.Parameter(parameters[0].detach().clone())]
    optimizer, other = Lamb(parameters), Lamb(alone)
    _set_gradients(parameters, 0)
    parameters[0].grad = None
    before = parameters[0].detach().clone()
    optimizer.step()
    assert torch.equal(parameters[0], before)
    _set_gradients(parameters, 1)
    assert parameters[0].grad is not None
    alone[0].grad = parameters[0].grad.clone()
    optimizer.step()
    other.step()
    torch.testing.assert_close(parameters[0], alone[0])


def test_lamb_learns_in_low_precision_too() -> None:
    """Parameters of several types, each updated in its own."""
    parameters = [torch.nn.Parameter(torch.ones(8, dtype=kind)) for kind in (torch.bfloat16, torch.float64)]
    optimizer = Lamb(parameters, lr=0.1)
    for each in parameters:
        each.grad = torch.ones_like(each)
    optimizer.step()
    for each in parameters:
        assert each.detach().float().tolist() == pytest.approx([0.9] * 8, rel=0.01)


def test_lamb_runs_a_closure() -> None:
    """Lightning hands its step one."""
    (parameter,) = parameters = _parameters(shapes=((3,),))

    def closure() -> float:
        _set_gradients(parameters, 0)
        return float(parameter.detach().sum())

    before = parameter.detach().clone()
    assert isinstance(Lamb(parameters).step(closure), float)
    assert not torch.equal(before, parameter)


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"eps": -1.0}, {"weight_decay": -1.0}])
def test_lamb_refuses_numbers_that_make_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="LAMB"):
        Lamb(_parameters(), **bad)
