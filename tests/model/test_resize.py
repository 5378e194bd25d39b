"""Resizing the output layer: known characters keep what was learnt for them."""

from __future__ import annotations

import pytest
import torch

from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.resize import resize_output
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel


def trained(codec: Codec, classes: int | None = None) -> RecognitionModel:
    torch.manual_seed(0)
    network = VGSLNetwork(f"[1,8,0,1 Cr3,3,4 S1(1x0)1,3 Lbx6 O{{head}}1c{classes or codec.num_classes}]")
    torch.nn.init.normal_(network.nn.head.lin.bias)
    return RecognitionModel(network=network, codec=codec)


def rows(model: RecognitionModel, keys: str) -> list[list[float]]:
    """The output layer's rows (with bias) of the blank and of each label of the keys."""
    layer = model.network.nn.head.lin
    labels = [0, *(label for key in keys for label in model.codec.c2l[key])]
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1)[labels].tolist()


def test_union_appends_and_keeps() -> None:
    """Characters would change their labels, or lose their rows."""
    model = trained(Codec.from_alphabet("bdf"))
    before = rows(model, "bdf")
    resized = resize_output(model, "bzxa", "union")
    assert resized.codec.c2l == {"b": [1], "d": [2], "f": [3], "a": [4], "x": [5], "z": [6]}
    assert resized.network.num_classes == 7
    assert resized.network.spec.endswith("O{head}1c7]")
    assert rows(resized, "bdf") == before
    assert rows(model, "bdf") == before
    assert model.network.num_classes == 4


def test_new_keeps_only_shared_characters() -> None:
    """Rows would move to other characters when the ones between them are dropped."""
    codec = Codec.from_mapping({"a": [1], "b": [2], "c": [3, 4], "d": [5]})
    model = trained(codec)
    resized = resize_output(model, "cdx", "new")
    assert resized.codec.c2l == {"c": [1, 2], "d": [3], "x": [4]}
    assert resized.network.num_classes == 5
    assert rows(resized, "cd") == rows(model, "cd")


def test_other_layers_and_flags_stay() -> None:
    """Fine-tuning would start from a network that has forgotten everything, or unfreeze it."""
    model = trained(Codec.from_alphabet("ab"))
    model.network.nn.C_0.requires_grad_(False)
    model.network.train()
    resized = resize_output(model, "abc", "union")
    for name, value in model.network.state_dict().items():
        if "head" not in name:
            assert torch.equal(value, resized.network.state_dict()[name])
    assert not resized.network.nn.C_0.co.weight.requires_grad
    assert resized.network.nn.head.lin.weight.requires_grad
    assert resized.network.training


def test_nothing_to_do_returns_the_model() -> None:
    """A network would be rebuilt for nothing."""
    model = trained(Codec.from_alphabet("abc"))
    assert resize_output(model, "abc", "new") is model
    assert resize_output(model, "ab", "union") is model
    assert resize_output(model, "ab", "fail") is model


def test_fail_names_the_difference() -> None:
    """A user would not learn which characters the model lacks."""
    with pytest.raises(InputError, match=r"'€' \(U\+20AC\).*--resize union.*--resize new"):
        resize_output(trained(Codec.from_alphabet("abc")), "ab€", "fail")


def test_more_classes_than_labels() -> None:
    """An output layer larger than its codec would be cut off."""
    resized = resize_output(trained(Codec.from_alphabet("ab"), classes=9), "abc", "union")
    assert resized.codec.c2l["c"] == [3]
    assert resized.network.num_classes == 9


def test_without_output_layer() -> None:
    """A network that ends in another block would be corrupted."""
    model = RecognitionModel(
        network=VGSLNetwork("[1,8,0,1 S1(1x0)1,3 Lbx2 Cr3,1,3]"), codec=Codec.from_alphabet("ab")
    )
    with pytest.raises(InputError, match="not an output layer"):
        resize_output(model, "abc", "union")
