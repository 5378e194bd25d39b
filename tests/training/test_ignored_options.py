"""Options that change nothing are named, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distrib.config.learning import Pretrain, Train
from distrib.training.ignored_options import ignored_options


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"log_dir": Path("logs")}, "--log-dir"),
        ({"augment_strength": 0.5}, "--augment-strength 0.5"),
        ({"resize": "union"}, "--resize union"),
        ({"freeze_backbone": 64}, "--freeze-backbone 64"),
        ({"base_dir": "R", "bidi_reordering": False}, "--base-dir R"),
    ],
)
def test_an_option_without_the_one_it_goes_with_is_named(options: dict[str, Any], named: str) -> None:
    """Broken: a user believes that something was tried which was not."""
    (sentence,) = ignored_options(Train(**options))
    assert sentence.startswith(f"{named} ")
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "options",
    [
        Train(),
        Train(log_dir=Path("logs"), pl_logger="tensorboard"),
        Train(augment=True, augment_strength=2.0),
        Train(load=Path("a.mlmodel"), resize="union", freeze_backbone=64),
        Train(resume=Path("run"), resize="union", freeze_backbone=64),
        Train(base_dir="R"),
        Pretrain(augment=True, augment_strength=2.0),
    ],
    ids=lambda options: options.command,
)
def test_what_is_of_use_is_not_complained_of(options: Train | Pretrain) -> None:
    assert ignored_options(options) == []


def test_pretraining_is_told_as_well() -> None:
    assert ignored_options(Pretrain(augment_strength=0.5, log_dir=Path("logs")))[1:]
