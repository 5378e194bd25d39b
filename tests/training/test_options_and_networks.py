"""Options that a network cannot honour are refused by name, before anything is begun."""

from __future__ import annotations

from typing import Any

import pytest

from distrib.config.learning import Train
from distrib.errors import InputError
from distrib.model.vgsl import VGSLNetwork
from distrib.training.choosing import refuse_without_parts

NOTHING_RECURRENT = "[1,16,0,1 Cr3,3,8 S1(1x0)1,3 O1c7]"
ANY_HEIGHT = "[1,0,0,1 Cr3,3,8 Lfys8 Lbx16 O1c7]"
ROWS = "[1,0,0,1 Cr3,3,8 Lbx16 Lfys8 O1c7]"
USUAL = "[1,16,0,1 Cr3,3,8 S1(1x0)1,3 Lbx16 O1c7]"


@pytest.mark.parametrize(
    ("spec", "options", "sentence"),
    [
        (
            NOTHING_RECURRENT,
            {"shortcut": 0.1},
            r"^--shortcut: VGSL spec .* give it one, or leave the option out\.$",
        ),
        (
            NOTHING_RECURRENT,
            {"span_masks": 0.1},
            r"^--span-masks: VGSL spec .* give it one, or leave the option out\.$",
        ),
        (
            NOTHING_RECURRENT,
            {"shortcut": 0.1, "span_masks": 0.1},
            r"^--shortcut and --span-masks: .*, or leave the options out\.$",
        ),
        (ROWS, {"shortcut": 0.1}, r"^--shortcut: .* or leave the option out\.$"),
        (ANY_HEIGHT, {"augment": True}, r"^--augment .* or leave the option out\.$"),
    ],
)
def test_the_option_and_the_way_out_are_named(spec: str, options: dict[str, Any], sentence: str) -> None:
    """Broken: the run directory is made first, and the sentence speaks of the spec alone."""
    with pytest.raises(InputError, match=sentence):
        refuse_without_parts(Train(**options), VGSLNetwork(spec))


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (NOTHING_RECURRENT, {"augment": True}),
        (ANY_HEIGHT, {"shortcut": 0.1, "span_masks": 0.1}),
        (ROWS, {"span_masks": 0.1}),
        (USUAL, {"shortcut": 0.1, "span_masks": 0.1, "augment": True}),
    ],
)
def test_networks_that_can_are_let_through(spec: str, options: dict[str, Any]) -> None:
    refuse_without_parts(Train(**options), VGSLNetwork(spec))
