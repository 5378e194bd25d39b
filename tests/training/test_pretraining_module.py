"""What is predicted stays hidden, the loss is the same however lines are batched, and collapse is told."""

from __future__ import annotations

import math
from dataclasses import fields
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from distrib.config.fields import info_of
from distrib.config.learning import Pretrain
from distrib.errors import InputError
from distrib.model.pretrained import NO_ALPHABET
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel
from distrib.runtime.processes import Processes
from distrib.runtime.topology import Topology
from distrib.stream.batches import LineBatch
from distrib.training.pretraining.collapse import Directions, collapse_warning
from distrib.training.pretraining.collapse_warning import CollapseWarning
from distrib.training.pretraining.heads import MASK, PROJECTION, checked_tap, make_heads
from distrib.training.pretraining.module import PretrainingModule
from distrib.training.schedules import Place

SPEC = "[1,16,0,1 Cr3,7,6 Mp4,4 S1(1x0)1,3 Lbx5 O1c2]"
ALONE = Processes(Topology())
PLACE = Place(epoch=2, step=0, steps=9, number=18, samples=0)


def module(spec: str = SPEC, **changes: Any) -> PretrainingModule:
    torch.manual_seed(1)
    network = VGSLNetwork(spec)
    network.init_weights()
    options = Pretrain(**{"num_negatives": 10, "mask_prob": 0.2, "checkpoint_path": Path("run"), **changes})
    model = RecognitionModel(network=network, codec=NO_ALPHABET)
    return PretrainingModule(model, options, processes=ALONE, seed=3)


def batch(widths: list[int], first: int = 0) -> LineBatch:
    """Lines of noise that follow from their numbers."""
    images = torch.zeros((len(widths), 1, 16, max(widths)), dtype=torch.uint8)
    for row, width in enumerate(widths):
        generator = torch.Generator().manual_seed(first + row)
        images[row, :, :, :width] = torch.randint(0, 256, (1, 16, width), generator=generator)
    none = torch.zeros(0, dtype=torch.int64)
    zeros = torch.zeros(len(widths), dtype=torch.int64)
    return LineBatch(
        images=images,
        widths=torch.tensor(widths),
        labels=none,
        label_lengths=zeros,
        required_steps=zeros,
        lines=torch.arange(first, first + len(widths)),
        texts=[""] * len(widths),
        bad=[],
    )


def gradients(learner: PretrainingModule) -> dict[str, Tensor]:
    found = {
        name: each.grad.clone() for name, each in learner.trained.named_parameters() if each.grad is not None
    }
    learner.zero_grad()
    return found


def test_the_gradient_of_a_step_does_not_depend_on_how_its_lines_are_batched() -> None:
    """Padding, other lines and other processes must not change what is learned from a line."""
    learner = module()
    widths = [120, 200, 64, 333]
    learner.loss(batch(widths), PLACE).backward()
    together = gradients(learner)
    units = learner.units(batch(widths), PLACE)
    learner._hidden = {}
    for row, width in enumerate(widths):
        alone = batch([width], first=row)
        units -= learner.units(alone, PLACE)
        learner.loss(alone, PLACE).backward()
    assert units == 0
    apart = gradients(learner)
    assert together.keys() == apart.keys()
    for name, value in together.items():
        torch.testing.assert_close(apart[name], value, atol=2e-5, rtol=1e-4)


def test_all_but_the_output_layer_learns() -> None:
    """A mask vector, projection or layer without gradient would stay as it was drawn."""
    learner = module()
    learner.loss(batch([200, 300]), PLACE).backward()
    found = gradients(learner)
    names = {name for name, _ in learner.trained.named_parameters()}
    assert names - found.keys() == {"nn.O_4.lin.weight", "nn.O_4.lin.bias"}
    assert {name for name in found if name.startswith("extra.")} == {
        f"extra.{MASK}.vector",
        f"extra.{PROJECTION}.weight",
        f"extra.{PROJECTION}.bias",
    }
    assert all(value.any() for value in found.values())


def test_contexts_know_nothing_of_the_hidden_columns() -> None:
    """Where what is to be predicted could be seen, predicting it would teach nothing."""
    learner = module().eval()
    lines = batch([400])
    hidden = learner._hide(lines, PLACE)
    with torch.no_grad():
        context, targets = learner._see(lines, hidden, lines.images / 255)
        changed = lines.images.clone()
        start = int(hidden.masks[0].int().argmax())
        # The middle of a mask of four columns of four pixels, as far as three pixels of the kernel reach.
        changed[:, :, :, 4 * start + 3 : 4 * start + 13] = 255
        context_then, targets_then = learner._see(lines, hidden, changed / 255)
    assert torch.equal(context, context_then)
    assert not torch.equal(targets, targets_then)


def test_a_pass_that_means_nothing_gives_every_parameter_a_gradient_of_zero() -> None:
    """A process without lines would be waited for, or spoil the others' gradient."""
    for negatives in ("line", "all"):
        learner = module(negatives=negatives)
        learner._nothing(PLACE).backward()
        found = gradients(learner)
        assert len(found) == len(list(learner.trained.parameters())) - 2
        assert not any(value.any() for value in found.values())


def test_lines_narrower_than_a_mask_are_unusable_with_a_reason() -> None:
    """They would be in the batch without a column to predict, and nobody would know."""
    learner = module(mask_width=6)
    found = learner.usable(batch([200, 20, 24]))
    assert found.lines.tolist() == [0, 2]
    assert [(bad.line, bad.reason) for bad in found.bad] == [(1, "5 columns wide, narrower than a mask")]


def test_heads_follow_from_the_seed_alone() -> None:
    """Processes draw other numbers before, and a resumed run none."""
    network = VGSLNetwork(SPEC)
    tap = checked_tap(network)
    torch.manual_seed(1)
    first = make_heads(network, tap, seed=5)
    state = torch.get_rng_state()
    again = make_heads(network, tap, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first[MASK].vector, again[MASK].vector)
    assert torch.equal(first[PROJECTION].weight, again[PROJECTION].weight)
    assert first[PROJECTION].weight.shape == (10, 24)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("[1,16,0,1 Cr3,3,8 S1(1x0)1,3 Lbx5 Mp1,2 O1c2]", "other columns than its feature map"),
        ("[1,16,0,1 Cr3,3,8 S1(1x0)1,3 O1c2]", "no recurrent layer"),
        ("[1,0,0,1 Cr3,3,8 Lbx5 O1c2]", "varies"),
    ],
)
def test_networks_that_cannot_be_pretrained_are_refused(spec: str, problem: str) -> None:
    """A traceback in the first step would say nothing of the spec."""
    with pytest.raises(InputError, match=problem):
        checked_tap(VGSLNetwork(spec))


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_width": 6},
        {"mask_prob": 0.3},
        {"num_negatives": 11},
        {"logit_temp": 0.2},
        {"negatives": "all"},
        {"augment": True},
    ],
)
def test_each_option_changes_the_loss(changes: dict[str, Any]) -> None:
    """An option that is read and not used is worse than one that is not there."""
    lines = batch([200, 300])
    usual, changed = (float(each.loss(lines, PLACE).detach()) for each in (module(), module(**changes)))
    assert changed != usual
    # The weights are as drawn: all that is learned so far is to guess among so many.
    learner = module(**changes)
    mean = changed / learner.units(lines, PLACE)
    assert mean == pytest.approx(math.log(1 + learner.options.num_negatives), abs=1.5)


def test_augmentation_is_never_validated_on() -> None:
    """Scores would be those of distorted lines, and others in every epoch."""
    scores = []
    for changes in ({}, {"augment": True}):
        learner = module(**changes).eval()
        learner.begin_validation()
        with torch.no_grad():
            learner.validate(batch([200, 300]))
        learner.end_validation(np.asarray(learner.validation_counts()))
        scores.append(learner.scores)
    assert scores[0] == scores[1]
    assert 0 < learner.score_of(scores[0]) < 1
    named = f"cross-entropy {scores[0]['val_ce']:.4f}"
    assert named in learner.describe(scores[0])
    assert learner.describe_score(learner.score_of(scores[0])) == named
    assert "-" not in learner.describe_score(1.0).removeprefix("cross-entropy")
    assert learner.describe_score(0.0).startswith("cross-entropy 7")


def test_the_lowest_temperature_leaves_scores_apart() -> None:
    """Scores that are all zero would never improve, and the best model be the latest."""
    lowest = next(each for each in fields(Pretrain) if each.name == "logit_temp")
    temperature = info_of(lowest).minimum
    assert temperature is not None
    learner = module(logit_temp=temperature)
    worst = 2 / temperature + math.log(1 + learner.options.num_negatives)
    assert learner.score_of({"val_ce": worst}) < learner.score_of({"val_ce": worst - 1e-3})


def test_the_warm_up_counts_samples() -> None:
    """32000 steps of 64 lines would be two million lines."""
    assert Pretrain.warmup_unit == "samples"


def measured(vectors: Tensor) -> tuple[float, float]:
    directions = Directions(vectors.shape[1])
    for part in vectors.split(100):
        directions.add(torch.nn.functional.normalize(part, dim=1))
    return directions.measure(ALONE)


def test_spread_and_rank_tell_collapse_from_variety() -> None:
    """The cross-entropy alone does not show whether features are still worth predicting."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((4000, 32), generator=generator)
    spread, rank = measured(noise)
    assert spread == pytest.approx(1, abs=0.01)
    assert rank == pytest.approx(32, abs=0.5)
    flat = noise.clone()
    flat[:, 3:] = 0
    spread, rank = measured(flat)
    assert spread == pytest.approx(1, abs=0.02)
    assert rank == pytest.approx(3, abs=0.1)
    spread, rank = measured(torch.ones(32) + 0.01 * noise)
    assert spread < 0.02
    assert rank == pytest.approx(1, abs=0.02)
    assert Directions(4).measure(ALONE) == (0.0, 0.0)


def test_directions_are_counted_past_single_precision() -> None:
    """From 2**24 columns on, a hundred thousand lines, the count would stand still and the moments grow."""
    directions = Directions(2)
    many = torch.tensor([[1.0, 0.0]]).expand(2**22, 2)
    for _ in range(5):
        directions.add(many)
    directions.add(torch.tensor([[0.0, 1.0]] * 3))
    assert float(directions._moments[0, 0]) == 5 * 2**22 + 3


def test_collapse_is_said_once_when_it_happens() -> None:
    """Hours of training would go by before anybody looks at a curve."""
    printed = StringIO()
    callback = CollapseWarning(Console(file=printed, width=200))
    learner = module()
    for spread in (0.5, 0.01, 0.01, 0.4):
        learner.scores = {"val_spread": spread, "val_rank": 1.0}
        callback.on_validation_end(SimpleNamespace(), learner)  # type: ignore[arg-type]
    said = printed.getvalue()
    assert said.count("collapsed") == 1
    assert "--lrate" in said
    assert collapse_warning(0.5, 3.0) is None
