"""Two checkpoints compared: a drill that overlooks a difference proves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distrib.runtime.checkpoints.difference import differences
from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint
from distrib.runtime.state import LocalState, Piece

from .checkpoint_states import facts, saved, store_of

_COMMON: dict[str, Any] = {"loops": [{"done": 3}], "score": float("nan"), "proof": torch.tensor([1.0, 2.0])}


def checkpoint(
    directory: Path, *, bias: torch.Tensor, rate: float = 0.1, common: dict[str, Any] = _COMMON
) -> CheckpointReader:
    """One of a single tensor."""
    directory.mkdir()
    piece = Piece(shape=tuple(bias.shape), start=0, values=bias.reshape(-1))
    state = LocalState(pieces={"weights/bias": piece}, groups=[{"lr": rate}])
    store = store_of(directory)
    store.save("one.ckpt", common, state, facts(1), background=False)
    return open_checkpoint(directory / "one.ckpt")


def test_the_same_state_has_no_difference_whoever_saved_it(tmp_path: Path) -> None:
    readers = []
    for sharded in (False, True):
        directory = tmp_path / str(sharded)
        directory.mkdir()
        readers.append(open_checkpoint(saved(store_of(directory, sharded=sharded), 3)))
    assert differences(*readers) == []


@pytest.mark.parametrize(
    ("other", "places"),
    [
        ({"bias": torch.tensor([1.0, -0.0])}, ["weights/bias"]),
        ({"bias": torch.tensor([1.0, 0.0], dtype=torch.float64)}, ["weights/bias"]),
        ({"bias": torch.tensor([[1.0, 0.0]])}, ["weights/bias"]),
        ({"rate": 0.2}, ["groups/0/lr"]),
        ({"common": {**_COMMON, "loops": [{"done": 4}]}}, ["common/loops/0/done"]),
        ({"common": {**_COMMON, "more": 1}}, ["common/more"]),
        ({"common": {**_COMMON, "proof": torch.tensor([1.0, 3.0])}}, ["common/proof"]),
        ({"common": {**_COMMON, "loops": [{"done": 3.0}]}}, ["common/loops/0/done"]),
    ],
)
def test_every_difference_is_found(tmp_path: Path, other: dict[str, Any], places: list[str]) -> None:
    bias = torch.tensor([1.0, 0.0])
    one = checkpoint(tmp_path / "one", bias=bias)
    assert differences(one, checkpoint(tmp_path / "same", bias=bias)) == []
    assert differences(one, checkpoint(tmp_path / "other", **{"bias": bias, **other})) == places
