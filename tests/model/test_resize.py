"""Resizing the output layer: known characters keep what was learnt for them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.resize import codec_difference, ctc_layer, resize_output
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


def test_fail_names_both_sides_with_counts() -> None:
    """A user would not learn which characters the model lacks, and whether they are a slip of the pen."""
    with pytest.raises(InputError) as caught:
        resize_output(trained(Codec.from_alphabet("abc")), Counter("aab€€"), "fail")
    assert str(caught.value) == (
        "its alphabet is not that of the training data: the model lacks '€' (U+20AC, 2 times), and only the "
        "model has 'c' (U+0063); use --resize union to add to it or --resize new to replace it"
    )


def test_ligatures_of_characters_in_use_are_kept() -> None:
    """A data set is known by its characters: whether it has the pair, nobody could tell."""
    codec = Codec.from_mapping({"f": [1], "fi": [2, 3], "i": [4], "x": [5], "st": [6]})
    assert codec_difference(codec, Counter("fix")).surplus == ("st",)
    resized = resize_output(trained(codec), "fi", "new")
    assert resized.codec.c2l == {"f": [1], "fi": [2, 3], "i": [4]}
    assert codec_difference(Codec.from_alphabet(["fi"]), "f").lacking == {"f": 1}


def test_long_differences_are_cut_and_counted() -> None:
    """A model of another script would fill the screen."""
    told = str(codec_difference(Codec.from_alphabet("a"), [chr(0x4E00 + number) for number in range(70)]))
    assert "and 50 more" in told
    assert not codec_difference(Codec.from_alphabet("ab"), "ab")


def test_more_classes_than_labels() -> None:
    """An output layer larger than its codec would be cut off."""
    resized = resize_output(trained(Codec.from_alphabet("ab"), classes=9), "abc", "union")
    assert resized.codec.c2l["c"] == [3]
    assert resized.network.num_classes == 9


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("Cr3,1,3", "has no output layer"),
        ("O1s4", "`O1s4`, which is no CTC output layer"),
        ("O1l4", "`O1l4`, which is no CTC output layer"),
        ("O2l4", "`O2l4`, which is no CTC output layer"),
        ("[Lbx2 O1c4]", "inside of a group"),
    ],
)
@pytest.mark.parametrize("mode", ["union", "new", "fail"])
def test_other_outputs_are_refused(end: str, words: str, mode: str) -> None:
    """Training would run, and its network read nothing."""
    model = RecognitionModel(
        network=VGSLNetwork(f"[1,8,0,1 S1(1x0)1,3 Lbx2 {end}]"), codec=Codec.from_alphabet("ab")
    )
    with pytest.raises(InputError, match=words):
        resize_output(model, "ab", mode)  # type: ignore[arg-type]


def test_a_recogniser_has_its_layer() -> None:
    """A good model would be refused."""
    model = trained(Codec.from_alphabet("ab"))
    assert ctc_layer(model.network) is model.network.nn.head
