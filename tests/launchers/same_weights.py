"""Whether runs on different targets have made the same of the same experiment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file


def assert_same_run(run: Path, weights: Path, reference: Path) -> None:
    """The same losses at every step and the same weights, to what the order of a sum makes of floats."""
    ours, theirs = load_file(weights), load_file(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() < 1e-5, name
    losses = [
        [json.loads(row)["loss"] for row in (folder / "steps.jsonl").read_text().splitlines()]
        for folder in (run, reference.parent)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    starts = [json.loads(row) for row in (run / "events.jsonl").read_text().splitlines()]
    assert {row["processes"] for row in starts if row["event"] == "start"} == {2}
