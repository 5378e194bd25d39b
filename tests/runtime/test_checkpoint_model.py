"""The model of a checkpoint, and what of a state survives the way to disk and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import RecognitionModel
from distrib.runtime.checkpoints.contents import STATE_KEY, model_from_checkpoint, model_state
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.state import WEIGHTS, LocalState, Piece, state_key

from .checkpoint_states import facts, store_of

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]


def model_of(spec: str = "[1,8,0,1 Cr3,3,4 Mp2,2 S1(1x0)1,3 Lbx6]") -> RecognitionModel:
    codec = Codec.from_mapping({"a": [1], "ſt": [2, 3]})
    network = VGSLNetwork(recognition_spec(spec, codec.num_classes))
    network.init_weights()
    return RecognitionModel(
        network=network,
        codec=codec,
        seg_type="bbox",
        one_channel_mode="L",
        legacy_polygons=False,
        metrics=[[0, {"val_accuracy": 0.5}]],
    )


def written(directory: Path, model: RecognitionModel, *, sharded: bool, drop: str = "") -> Path:
    store = store_of(directory, sharded=sharded)
    pieces = {
        state_key(WEIGHTS, name): Piece(
            shape=tuple(tensor.shape), start=0, values=tensor.detach().reshape(-1)
        )
        for name, tensor in model.network.state_dict().items()
        if name != drop
    }
    pieces["exp_avg/other"] = Piece(shape=(1,), start=0, values=torch.ones(1))
    common = {STATE_KEY: {"model": model_state(model)}}
    store.save("m.ckpt", common, LocalState(pieces=pieces, groups=[]), facts(1), background=False)
    store.finish()
    return directory / "m.ckpt"


@pytest.mark.parametrize("sharded", [False, True])
def test_the_model_of_a_checkpoint_is_the_model(tmp_path: Path, sharded: bool) -> None:
    """Else an export would be of other weights, or of another alphabet."""
    model = model_of()
    found = model_from_checkpoint(open_checkpoint(written(tmp_path, model, sharded=sharded)))
    assert model_state(found) == model_state(model)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor)


def test_a_checkpoint_without_its_model_is_refused(tmp_path: Path) -> None:
    """Else a network would be exported with layers that were never trained."""
    model = model_of()
    missing = next(iter(model.network.state_dict()))
    path = written(tmp_path, model, sharded=False, drop=missing)
    with pytest.raises(InputError, match="damaged"):
        model_from_checkpoint(open_checkpoint(path))
    reader = open_checkpoint(path)
    common: dict[str, Any]
    for common in ({}, {STATE_KEY: None}, {STATE_KEY: {"model": {"spec": model.network.spec}}}):
        reader.common = common
        with pytest.raises(InputError, match="damaged"):
            model_from_checkpoint(reader)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elements_of_every_type_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    """Else counters would come back rounded, or half-precision states not at all."""
    values = torch.tensor([0, 1, 100, 2]).to(dtype)
    store = store_of(tmp_path)
    pieces = {"x/w": Piece(shape=(2, 2), start=0, values=values)}
    store.save("a.ckpt", {"rng": values.clone()}, LocalState(pieces=pieces, groups=[]), facts(1))
    store.finish()
    reader = open_checkpoint(tmp_path / "a.ckpt")
    assert reader.dtype("x/w") == dtype
    assert torch.equal(reader.tensor("x/w"), values.view(2, 2))
    assert torch.equal(reader.common["rng"], values)
