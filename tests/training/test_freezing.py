"""A frozen backbone stays as it is, to the bit and to the sample, and begins as if new."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distrib.errors import InputError
from distrib.model.vgsl import VGSLNetwork
from distrib.runtime.strategies.plain import SingleProcess
from distrib.training.freezing import Backbone

from .small_learner import LINES, SPEC, learner, lines, place, train, weights

STEPS = 6


def _by_step(**options: Any) -> list[dict[str, torch.Tensor]]:
    """The weights before the first step and after each."""
    module = learner(**options)
    after = [weights(module)]
    train(module, STEPS, done=lambda _: after.append(weights(module)))
    return after


def _moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "SGD", "RMSprop", "Lamb"])
@pytest.mark.parametrize(("samples", "frozen"), [(2 * LINES, 2), (2 * LINES + 1, 3), (1, 1)])
def test_it_learns_from_the_step_that_begins_with_enough_samples(
    samples: int, frozen: int, optimizer: str
) -> None:
    """One step too early or too late, or weight decay at work in between, would show."""
    after = _by_step(freeze_backbone=samples, optimizer=optimizer, weight_decay=0.1, ema=0.9)
    for step in range(STEPS):
        moved = _moved(after[step], after[step + 1])
        assert moved == ({"O_4"} if step < frozen else {"C_0", "L_3", "O_4"}), step


def test_without_the_option_all_learns() -> None:
    after = _by_step()
    assert _moved(after[0], after[1]) == {"C_0", "L_3", "O_4"}


def test_extra_modules_learn_while_it_is_frozen() -> None:
    after = _by_step(freeze_backbone=1000, shortcut=0.3)
    assert _moved(after[0], after[1]) == {"O_4", "shortcut"}


def test_it_begins_as_if_new() -> None:
    """What an optimizer keeps of the frozen time would make the first real steps too long or too short."""
    module = learner(freeze_backbone=3 * LINES)
    strategy, steps = train(module, 5), {}
    for name, parameter in module.network.named_parameters():
        steps[name.split(".")[1]] = int(strategy.optimizers[0].state[parameter]["step"])
    assert steps == {"C_0": 2, "L_3": 2, "O_4": 5}


def test_no_gradient_goes_through_it() -> None:
    module = learner(freeze_backbone=10, shortcut=0.2)
    strategy = SingleProcess(device=torch.device("cpu"))
    trainer: Any = type("Attached", (), {"strategy": strategy})()
    module._trainer = trainer
    module.loss(lines(), place(samples=9)).backward()  # type: ignore[no-untyped-call]
    learned = {name for name, each in module.trained.named_parameters() if each.grad is not None}
    assert {name.split(".")[1] for name in learned} == {"O_4", "shortcut"}
    module.loss(lines(), place(samples=10)).backward()  # type: ignore[no-untyped-call]
    assert all(each.grad is not None for each in module.trained.parameters())


def test_what_an_optimizer_keeps_of_a_group_is_forgotten() -> None:
    one, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.Adam([{"params": [one]}, {"params": [other]}])
    (one.sum() + other.sum()).backward()
    optimizer.step()
    strategy = SingleProcess(device=torch.device("cpu"))
    strategy.optimizers = [optimizer]
    strategy.forget(1, "exp_avg")
    assert optimizer.state[other].keys() == {"step", "exp_avg_sq"}
    strategy.forget(0)
    assert one not in optimizer.state
    assert other in optimizer.state


def test_all_parameters_are_in_one_group() -> None:
    module = learner(freeze_backbone=10, shortcut=0.2)
    groups = module.configure_optimizers().param_groups
    numbers = [len(group["params"]) for group in groups]
    assert numbers == [2 + 8, 2 + 2]
    assert sum(numbers) == len(list(module.trained.parameters()))
    assert len(learner().configure_optimizers().param_groups) == 1


@pytest.mark.parametrize("output", ["", " O1s5", " O2l3"])
def test_a_network_that_ends_in_no_ctc_layer_is_refused(output: str) -> None:
    """Another last layer than the one that is trained would be left to learn alone."""
    with pytest.raises(InputError, match=r"no (CTC )?output layer"):
        Backbone(VGSLNetwork(SPEC.replace("]", f"{output}]")), frozen_for=5)
