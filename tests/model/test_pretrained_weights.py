"""Pretrained networks: told from recognisers, read in every layout, given a fresh output layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.pretrained import NO_ALPHABET, is_pretrained, with_fresh_output
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel, load_weights, save_weights

BODY = "[1,16,0,1 Cr3,3,4 S1(1x0)1,3 Lbx5"


def model(spec: str, codec: Codec) -> RecognitionModel:
    torch.manual_seed(1)
    network = VGSLNetwork(spec)
    network.init_weights()
    return RecognitionModel(network=network, codec=codec)


def test_a_single_space_is_no_alphabet_but_any_other_is() -> None:
    """A recogniser taken for a pretrained network would forget all it can read."""
    assert is_pretrained(model(f"{BODY} O1c2]", NO_ALPHABET))
    assert is_pretrained(model(f"{BODY}]", Codec({})))
    assert not is_pretrained(model(f"{BODY} O1c2]", Codec({"a": [1]})))
    assert not is_pretrained(model(f"{BODY} O1c3]", Codec({" ": [1], "a": [2]})))


@pytest.mark.parametrize(
    ("spec", "codec"),
    [
        (f"{BODY} O1c2]", NO_ALPHABET),
        (f"{BODY}]", Codec({})),
        (f"{BODY} O1ca7]", Codec.from_alphabet("abcdef")),
    ],
)
def test_a_fresh_output_layer_leaves_all_other_weights(spec: str, codec: Codec) -> None:
    """What was learned from the images is all that there is to keep."""
    old = model(spec, codec)
    new = with_fresh_output(old, Codec.from_alphabet("abcd"))
    assert (new.network.num_classes, len(new.codec)) == (5, 4)
    assert new.network.spec.endswith("5]")
    before, after = old.network.state_dict(), new.network.state_dict()
    for name, value in before.items():
        if "O_" not in name:
            assert torch.equal(after[name], value), name
    assert {name.split(".")[1] for name in after.keys() - before.keys()} <= {"O_3"}
    assert after["nn.O_3.lin.weight"].shape[0] == 5
    assert not after["nn.O_3.lin.bias"].any()
    assert old.network.num_classes != 5


def test_a_network_without_a_line_of_output_is_refused() -> None:
    """It cannot read lines, whatever output layer it gets."""
    with pytest.raises(InputError, match="height"):
        with_fresh_output(model("[1,16,0,1 Cr3,3,4 Lbx5]", Codec({})), NO_ALPHABET)
    with pytest.raises(InputError, match="no CTC output layer"):
        with_fresh_output(
            model("[1,16,0,1 Cr3,3,4 S1(1x0)1,3 O1s3]", Codec({"a": [1], "b": [2]})), NO_ALPHABET
        )


@pytest.mark.parametrize("codec", [None, {}, '{" ": [1]}', {" ": [1]}])
@pytest.mark.parametrize("output", [True, False])
def test_files_of_pretraining_are_read_beside_their_mask_layer(
    tmp_path: Path, output: bool, codec: object
) -> None:
    """With or without output layer, codec and heads: all have been written at some time."""
    known = model(f"{BODY} O1c2]" if output else f"{BODY}]", NO_ALPHABET)
    entry = {**known.metadata(), "codec": codec}
    mask = {"_kraken_min_version": "5.0.0", "_tasks": ["recognition"], "_model": "Wav2Vec2Mask"}
    tensors = {f"one.{name}": value for name, value in known.network.state_dict().items()}
    tensors["two.mask_emb.weight"] = torch.zeros(1, 4)
    path = tmp_path / "pretrained.safetensors"
    save_file(tensors, path, metadata={"kraken_meta": json.dumps({"one": entry, "two": mask})})
    found = load_weights(path)
    assert found.network.spec == known.network.spec
    assert is_pretrained(found) == (not output or codec not in (None, {}))


def test_a_pretrained_network_survives_being_written(tmp_path: Path) -> None:
    """In either format: kraken of before 7 has them in CoreML."""
    known = model(f"{BODY} O1c2]", NO_ALPHABET)
    save_weights(known, tmp_path / "a.safetensors")
    found = load_weights(tmp_path / "a.safetensors")
    assert is_pretrained(found)
    assert all(
        torch.equal(found.network.state_dict()[name], value)
        for name, value in known.network.state_dict().items()
    )
