"""The second head reads the feature map, adds its loss, and stays out of the network."""

from __future__ import annotations

import pytest
import torch

from distrib.errors import InputError
from distrib.model.taps import FeatureTap
from distrib.model.vgsl import VGSLNetwork
from distrib.training.shortcut import shortcut_head

from .small_learner import learner, lines, place


def test_the_head_scores_every_column_of_the_feature_map() -> None:
    network = VGSLNetwork("[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16 O1c7]")
    tap = FeatureTap(network)
    head = shortcut_head(tap, 7)
    features = torch.rand(2, tap.channels, tap.height, 11)
    scores = head(features)
    assert scores.shape == (2, 7, 1, 11)
    changed = features.clone()
    changed[..., 5] += 1
    moved = (head(changed) != scores).any(1)[:, 0].any(0)
    assert moved.nonzero().flatten().tolist() == [4, 5, 6]


def test_a_feature_map_of_no_fixed_height_is_refused_with_the_way_out() -> None:
    network = VGSLNetwork("[1,0,0,1 Cr3,3,8 Lbx16 Lfys8 O1c7]")
    tap = FeatureTap(network)
    with pytest.raises(InputError, match="--shortcut"):
        shortcut_head(tap, 7)


def test_its_loss_counts_with_the_weight_of_the_option() -> None:
    """The weight ignored, or the head's loss left out, would show here."""
    losses = [_loss(shortcut=weight) for weight in (0.0, 0.25, 0.5)]
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) / 2, rel=1e-4)
    assert losses[1] > losses[0] + 1


def test_the_layers_before_the_feature_map_learn_from_it_and_those_behind_do_not() -> None:
    plain, helped = learner(), learner(shortcut=0.5)
    for module in (plain, helped):
        module.loss(lines(), place()).backward()  # type: ignore[no-untyped-call]
    same = {
        name: torch.allclose(one.grad, other.grad)
        for (name, one), other in zip(
            plain.network.named_parameters(), helped.network.parameters(), strict=True
        )
        if one.grad is not None and other.grad is not None
    }
    assert same == {name: not name.startswith("nn.C_0") for name in same}
    assert len(same) == len(list(plain.network.parameters()))
    assert {name for name, _ in helped.trained.named_parameters() if name.startswith("extra.")} == {
        "extra.shortcut.co.weight",
        "extra.shortcut.co.bias",
    }
    assert helped.network.state_dict().keys() == plain.network.state_dict().keys()


def test_a_lines_loss_does_not_depend_on_its_batch() -> None:
    """Features behind a narrow line's end would be read as if they were ink."""
    module = learner(shortcut=0.5, span_masks=0.2, label_smoothing=0.05)
    batch = lines()
    alone = [
        module.loss(batch.select(torch.arange(len(batch.lines)) == number), place())
        for number in range(len(batch.lines))
    ]
    together = module.loss(batch, place())
    assert float(together.detach()) == pytest.approx(sum(float(each.detach()) for each in alone), rel=1e-5)


@pytest.mark.parametrize("option", [{"span_masks": 0.4}, {"label_smoothing": 0.1}])
def test_the_other_options_of_the_loss_are_not_ignored(option: dict[str, float]) -> None:
    assert _loss(**option) != pytest.approx(_loss(), rel=1e-3)


def _loss(**options: float) -> float:
    return float(learner(**options).loss(lines(), place()).detach())
