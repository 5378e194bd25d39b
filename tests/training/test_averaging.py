"""Averages of weights follow the closed form, survive checkpoints, and are what is validated and exported."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from distrib.runtime.checkpoints.contents import STATE_KEY, model_from_checkpoint, model_state
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.store import CheckpointFacts, CheckpointStore
from distrib.runtime.state import Piece, state_key
from distrib.runtime.strategies.plain import load_whole_state, whole_state
from distrib.training.averaging import averaged_network, drop_averages, keep_averages

from .small_learner import learner, train, weights


def _averages(rows: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The average of weights by step, as it is defined."""
    average = rows[0].double()
    for step, row in enumerate(rows):
        share = min(decay, (1 + step) / (10 + step)) if step else 0.0
        average = share * average + (1 - share) * row.double()
    return average


@pytest.mark.parametrize("decay", [0.5, 0.999])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Lamb"])
def test_averages_follow_the_closed_form(decay: float, optimizer: str) -> None:
    """A decay ignored, a step missed or counted twice would show."""
    module, rows = learner(ema=decay, optimizer=optimizer), []  # type: ignore[var-annotated]
    strategy = train(module, 12, done=lambda _: rows.append(weights(module)))
    pieces = strategy.local_state().pieces
    for name, tensor in module.trained.state_dict().items():
        expected = _averages([row[name] for row in rows], decay)
        found = pieces[state_key("ema", name)].values.view(tensor.shape)
        assert torch.allclose(found.double(), expected, atol=1e-6), name
        assert not torch.allclose(found, tensor, atol=1e-6)


def test_without_the_option_nothing_is_averaged() -> None:
    strategy = train(learner(), 2)
    assert not [key for key in strategy.local_state().pieces if key.startswith("ema/")]


def test_what_did_not_learn_has_no_average_and_counts_steps_all_the_same() -> None:
    """Averages of a thawed backbone go on in step with those of the last layer."""
    late, early = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [late]}, {"params": [early]}], lr=1.0)
    keep_averages(optimizer, 0.9)
    for step in range(5):
        optimizer.zero_grad()
        (early.sum() + (late.sum() if step > 2 else 0.0)).backward()
        optimizer.step()
        assert ("ema" in optimizer.state.get(late, {})) == (step > 2)
    assert [group["averaged_steps"] for group in optimizer.param_groups] == [5, 5]
    assert optimizer.state[late]["ema"].tolist() == pytest.approx([-1 - (1 - 5 / 14)] * 2)


def test_short_weights_have_long_averages_also_after_loading() -> None:
    """In bfloat16 a step of a thousandth would be lost."""
    network = nn.Linear(4, 2).bfloat16()
    optimizer = torch.optim.AdamW(network.parameters())
    keep_averages(optimizer, 0.999)
    network(torch.ones(1, 4).bfloat16()).sum().backward()
    for _ in range(3):
        optimizer.step()
    state = whole_state(network, optimizer)
    kept = {key: (piece.values.clone(), piece.shape) for key, piece in state.pieces.items()}

    def read(key: str) -> torch.Tensor:
        return kept[key][0]

    reader: Any = SimpleNamespace(
        shapes={key: shape for key, (_, shape) in kept.items()}, groups=state.groups, read=read
    )
    load_whole_state(network, optimizer, reader)
    again = whole_state(network, optimizer).pieces
    assert again["ema/weight"].values.dtype == torch.float32
    assert all(torch.equal(again[key].values, values) for key, (values, _) in kept.items())


def test_a_run_that_goes_on_without_forgets() -> None:
    """Averages of long ago would be exported for ever."""
    module = learner(ema=0.9)
    strategy = train(module, 2)
    drop_averages(strategy)
    state = strategy.local_state()
    assert not [key for key in state.pieces if key.startswith("ema/")]
    assert [key for key in state.pieces if key.startswith("exp_avg/")]
    assert all("averaged_steps" not in group for group in state.groups)


class _Divided:
    """One of two processes of which each holds every other element of what was averaged or weighs."""

    sharded = True
    root_device = torch.device("cpu")

    def __init__(self, rank: int, pieces: dict[str, Piece]) -> None:
        self._pieces = {}
        for key, piece in pieces.items():
            half = piece.values.numel() // 2
            part = slice(0, half) if rank == 0 else slice(half, None)
            if piece.values[part].numel():
                self._pieces[key] = Piece(shape=piece.shape, start=part.start, values=piece.values[part])

    def local_state(self) -> Any:
        return SimpleNamespace(pieces=self._pieces)


class _Together:
    """Sums with what the other process has said, in the order in which both say it."""

    def __init__(self, others: list[Any] | None = None) -> None:
        self.said: list[Any] = []
        self._others = iter(others) if others is not None else None

    def sum(self, numbers: list[float]) -> list[float]:
        self.said.append(list(numbers))
        if self._others is None:
            return [1.0 if each else 0.0 for each in self.said[-1]]
        return [one + other for one, other in zip(numbers, next(self._others), strict=True)]

    def sum_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        self.said.append(tensor.clone())
        return tensor if self._others is None else tensor.add_(next(self._others))


def test_the_averaged_network_is_whole_at_each_process() -> None:
    """Under strategies that divide the state each has but a part of each average."""
    module: Any = learner(ema=0.7)
    strategy = train(module, 4)
    alone = averaged_network(module.network, strategy, module.processes)
    pieces = dict(strategy.local_state().pieces)
    first: Any = _Together()
    divided: Any = [_Divided(rank, pieces) for rank in range(2)]
    averaged_network(module.network, divided[0], first)
    second: Any = _Together(first.said)
    found = averaged_network(module.network, divided[1], second)
    assert not found.training
    for name, tensor in alone.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
        assert torch.equal(tensor.view(-1), pieces[state_key("ema", name)].values)
        assert not torch.equal(tensor, module.network.state_dict()[name])


def test_layers_that_are_frozen_are_as_they_are_in_the_averaged_network() -> None:
    module = learner(ema=0.7, freeze_backbone=1000)
    strategy = train(module, 3)
    averaged = averaged_network(module.network, strategy, module.processes).state_dict()
    live = module.network.state_dict()
    assert {name.split(".")[1] for name in live if not torch.equal(live[name], averaged[name])} == {"O_4"}


def test_validation_reads_with_the_averaged_network_and_training_goes_on_with_the_live_one() -> None:
    module = learner(ema=0.7)
    seen: list[Any] = []

    def validate() -> None:
        module.begin_validation()
        seen.append(module.judged.network)
        module.end_validation(module.validation.to_vector().astype("float64"))

    train(module, 2, done=lambda _: validate())
    assert all(each is not module.network for each in seen)
    assert module.judged is module.model
    before = weights(module)
    assert not torch.equal(before["nn.O_4.lin.weight"], seen[-1].state_dict()["nn.O_4.lin.weight"])


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_the_model_of_a_checkpoint_is_the_one_that_was_validated(ema: float, tmp_path: Path) -> None:
    """And the head that only helps in training is none of its layers."""
    module = learner(ema=ema, shortcut=0.3)
    strategy = train(module, 3)
    state = strategy.local_state()
    assert [key for key in state.pieces if "extra.shortcut" in key]
    store = CheckpointStore(tmp_path, keep_best=1, keep_last=1, sharded=False, processes=module.processes)
    facts = CheckpointFacts(kind="interval", step=3, epoch=0, score=None)
    store.save("m.ckpt", {STATE_KEY: {"model": model_state(module.model)}}, state, facts, background=False)
    store.finish()
    path = tmp_path / "m.ckpt"
    found = model_from_checkpoint(open_checkpoint(path)).network.state_dict()
    expected = averaged_network(module.network, strategy, module.processes).state_dict()
    assert found.keys() == module.network.state_dict().keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    same = torch.equal(found["nn.O_4.lin.weight"], module.network.state_dict()["nn.O_4.lin.weight"])
    assert same == (ema == 0)
