"""Weights files: what is written is read back, by us and by kraken's rules, or refused in a sentence."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.multiprocessing.reductions import StorageWeakRef

from distrib.errors import InputError, RunError
from distrib.model.codec import Codec
from distrib.model.coreml import refuse_unfit
from distrib.model.safetensors_file import Entry, read_entries, write_entries
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel, load_weights, save_weights

SPEC = "[1,24,0,1 Cr3,3,4 Gn2 CTl3,3,4 Do0.1,2 Mp2,2 Lfys6 I A3,3 Lbx5 O1c4]"


def model_of(spec: str = SPEC, **fields: Any) -> RecognitionModel:
    torch.manual_seed(3)
    return RecognitionModel(network=VGSLNetwork(spec).eval(), codec=Codec.from_alphabet("abc"), **fields)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def scores(model: RecognitionModel) -> torch.Tensor:
    torch.manual_seed(4)
    with torch.no_grad():
        return model.network(torch.rand(1, 1, 24, 40))[0]


def rewritten(path: Path, **changes: Any) -> Path:
    """A file with other values in its model's metadata; None removes a key."""
    with safe_open(path, "pt") as file:
        models = json.loads(file.metadata()["kraken_meta"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for values in models.values():
        values.update(changes)
        for key in [key for key, value in values.items() if value is None and key in changes]:
            del values[key]
    target = path.with_name("changed.safetensors")
    save_file(tensors, target, metadata={"kraken_meta": json.dumps(models)})
    return target


@pytest.mark.oracle
def test_both_formats_hold_the_same_network(oracle_dir: Path) -> None:
    """Old weights would give another network than the same weights converted."""
    pytest.importorskip("coremltools")
    new, old = (load_weights(oracle_dir / name) for name in ("small.safetensors", "small.mlmodel"))
    assert new.codec == old.codec
    assert (new.seg_type, new.one_channel_mode, new.legacy_polygons) == ("bbox", "L", False)
    assert (old.seg_type, old.one_channel_mode, old.legacy_polygons) == ("bbox", "L", False)
    states = new.network.state_dict(), old.network.state_dict()
    for name, value in states[0].items():
        if "bias_ih" in name:  # CoreML has the sum of an LSTM's two biases
            other = name.replace("bias_ih", "bias_hh")
            torch.testing.assert_close(value + states[0][other], states[1][name] + states[1][other])
        elif "bias_hh" not in name:
            assert torch.equal(value, states[1][name])


@pytest.mark.parametrize("weights_format", ["safetensors", "coreml"])
def test_roundtrip(tmp_path: Path, weights_format: Any) -> None:
    """Weights, metrics or another program's metadata would be lost."""
    if weights_format == "coreml":
        pytest.importorskip("coremltools")
    model = model_of(
        seg_type="baselines", one_channel_mode="1", metrics=[[1, {"cer": 0.5}]], extra={"note": "kept"}
    )
    path = tmp_path / "model.bin"  # the content tells the format, not the name
    save_weights(model, path, weights_format=weights_format)
    read = load_weights(path)
    torch.testing.assert_close(scores(read), scores(model))
    assert read.codec == model.codec
    assert (read.seg_type, read.one_channel_mode, read.legacy_polygons) == ("baselines", "1", False)
    assert (read.metrics, read.extra) == ([[1, {"cer": 0.5}]], {"note": "kept"})
    assert not read.network.training
    assert all(parameter.requires_grad for parameter in read.network.parameters())
    read.network.train()(torch.rand(1, 1, 24, 40))[0].sum().backward()
    assert names_in(tmp_path) == ["model.bin"]


def test_layout_is_krakens(tmp_path: Path) -> None:
    """kraken would not find the model in the file; it refuses a codec that is JSON text."""
    save_weights(model_of(), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert list(file.metadata()) == ["kraken_meta"]
        ((key, values),) = json.loads(file.metadata()["kraken_meta"]).items()
        assert {f"{key}.{name}" for name in model_of().network.state_dict()} == set(file.keys())
    assert values["_kraken_min_version"] == "5.0.0"
    assert (values["_tasks"], values["_model"]) == (["recognition"], "TorchVGSLModel")
    assert values["codec"] == {"a": [1], "b": [2], "c": [3]}
    assert values["vgsl"] == model_of().network.spec
    assert values["model_type"] == ["recognition"]


def test_same_model_same_bytes(tmp_path: Path) -> None:
    """Two strategies that end with the same state could not be shown to give the same file."""
    for name in ("a", "b"):
        save_weights(model_of(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bytes_are_those_of_the_formats_own_library(tmp_path: Path) -> None:
    """Other programs would read wrong tensors, or the metadata differ from one writing to the next."""
    torch.manual_seed(1)
    tensors = {
        "wide": torch.rand(3, 2, dtype=torch.float64),
        "half": torch.rand(5).bfloat16(),
        "turned": torch.rand(4, 3).T,
        "part": torch.rand(9)[2:5],
        "number": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "mask": torch.tensor([True, False, True]),
    }
    entry = Entry(metadata={"_tasks": ["mask"], "name": "ä字"}, tensors=tensors)
    with (tmp_path / "m").open("wb") as file:
        write_entries([entry], file)
    with safe_open(tmp_path / "m", "pt") as file:
        (key,) = json.loads(file.metadata()["kraken_meta"])
        metadata = file.metadata()
    named = {f"{key}.{name}": value.contiguous() for name, value in tensors.items()}
    assert (tmp_path / "m").read_bytes() == safetensors.torch.save(named, metadata=metadata)
    with (tmp_path / "m").open("wb") as file:
        write_entries([entry], file, file_metadata={"z": "ä", "a": '"'})
    header = (tmp_path / "m").read_bytes()[8:]
    assert header.startswith('{"__metadata__":{"z":"ä","a":"\\"","kraken_meta":'.encode())


class OneAtATime(Mapping[str, torch.Tensor]):
    """Tensors of which no two may be held at once."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.held: StorageWeakRef | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        assert self.held is None or self.held.expired()
        tensor = self.tensors[name].clone()
        self.held = StorageWeakRef(tensor.untyped_storage())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_tensors_are_written_one_at_a_time(tmp_path: Path) -> None:
    """A model would need twice its size or more to be exported."""
    model, tensors = model_of(), dict(model_of().network.state_dict())
    save_weights(model, tmp_path / "a")
    model.network.to("meta")
    save_weights(model, tmp_path / "b", tensors=OneAtATime(tensors))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("weights_format", ["safetensors", "coreml"])
def test_what_does_not_pass_verification_leaves_the_old_file(tmp_path: Path, weights_format: Any) -> None:
    """A file would take its name before it is known to be right."""
    if weights_format == "coreml":
        pytest.importorskip("coremltools")
    path, seen = tmp_path / "m", []
    path.write_bytes(b"older")

    def verify(written: Path) -> None:
        seen.append(load_weights(written))
        assert path.read_bytes() == b"older"
        if len(seen) == 1:
            raise RunError("wrong")

    model = model_of(file_metadata={"provenance": "kept"})
    with pytest.raises(RunError, match="wrong"):
        save_weights(model, path, weights_format=weights_format, verify=verify)
    assert (path.read_bytes(), names_in(tmp_path)) == (b"older", ["m"])
    save_weights(model, path, weights_format=weights_format, verify=verify)
    for read in (seen[1], load_weights(path)):
        torch.testing.assert_close(scores(read), scores(model))
        assert read.file_metadata == {"provenance": "kept"}
    assert names_in(tmp_path) == ["m"]


def test_networks_too_large_for_coreml_are_refused_before_training(tmp_path: Path) -> None:
    """Weeks of training would end in weights that the chosen format cannot hold."""
    pytest.importorskip("coremltools")
    with torch.device("meta"):
        large = VGSLNetwork("[1,1,0,1 Lfx12000 O1c4]")
    for refused in (
        lambda: refuse_unfit(large, tmp_path / "m"),
        lambda: save_weights(
            RecognitionModel(network=large, codec=Codec.from_alphabet("abc")),
            tmp_path / "m",
            weights_format="coreml",
        ),
    ):
        with pytest.raises(InputError, match="at most 2 GiB"):
            refused()
    assert not names_in(tmp_path)


def test_half_precision_is_written_as_float32(tmp_path: Path) -> None:
    """kraken would load weights of a type it cannot run on the CPU."""
    model = model_of()
    model.network.to(torch.bfloat16)
    save_weights(model, tmp_path / "m")
    assert {value.dtype for value in load_weights(tmp_path / "m").network.state_dict().values()} == {
        torch.float32
    }


def test_recognition_network_beside_a_mask_layer(tmp_path: Path) -> None:
    """Fine-tuning could not start from pretrained weights."""
    model = model_of()
    mask = Entry(metadata={"_tasks": ["mask"], "_model": "Mask"}, tensors={"mask": torch.ones(3)})
    network = Entry(metadata=model.metadata(), tensors=model.network.state_dict())
    with (tmp_path / "m").open("wb") as file:
        write_entries([mask, network], file, file_metadata={"other": "kept"})
    read = load_weights(tmp_path / "m")
    torch.testing.assert_close(scores(read), scores(model))
    assert read.file_metadata == {"other": "kept"}
    entries, _ = read_entries(tmp_path / "m")
    assert sorted(entry.tasks for entry in entries) == [("mask",), ("recognition",)]
    again = Entry(metadata={**model.metadata(), "n": 2}, tensors=network.tensors)
    with (tmp_path / "m").open("wb") as file:
        write_entries([network, again], file)
    with pytest.raises(InputError, match="2 recognition networks"):
        load_weights(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_tasks": ["segmentation", "reading_order"]}, "reading_order, segmentation"),
        ({"vgsl": SPEC.replace("O1c4", "O1c5")}, r"nn.O_9.lin.* \(4, 10\) instead of \(5, 10\)"),
        ({"vgsl": SPEC.replace("Gn2 ", "")}, "nn.C_1.co.bias is missing"),
        ({"vgsl": SPEC.replace("Cr3,3,4", "Cr3,3,999999999")}, "changed.safetensors: .*"),
        ({"vgsl": SPEC.replace("Cr3", "Cq3")}, "changed.safetensors: VGSL spec, block 1 `Cq3,3,4`"),
        ({"vgsl": 3}, "not a string"),
        ({"vgsl": None}, "no recognition network"),
        ({"codec": {"a": [4]}}, "labels up to 4"),
        ({"codec": {"a": [1], "b": [1]}}, "'a'"),
        ({"codec": "{"}, "codec cannot be read"),
        ({"codec": [1]}, "codec"),
        ({"seg_type": "round"}, "round"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """A wrong file would end in a traceback, or worse, be trained on."""
    save_weights(model_of(), tmp_path / "m")
    with pytest.raises(InputError, match=words):
        load_weights(rewritten(tmp_path / "m", **changes))


def test_missing_metadata_has_defaults(tmp_path: Path) -> None:
    """Weights of older programs, which wrote less, could not be used."""
    save_weights(model_of(), tmp_path / "m")
    gone = dict.fromkeys(
        ("seg_type", "one_channel_mode", "metrics", "accuracy", "codec", "_tasks", "model_type")
    )
    read = load_weights(rewritten(tmp_path / "m", **gone, legacy_polygons=None))
    assert (read.seg_type, read.one_channel_mode, read.metrics) == ("bbox", None, [])
    assert read.legacy_polygons
    assert len(read.codec) == 0
    text = json.dumps({"a": [2]})
    assert load_weights(rewritten(tmp_path / "m", codec=text)).codec.c2l == {"a": [2]}


def test_damaged_files(tmp_path: Path) -> None:
    """A download that broke off would end in a traceback."""
    save_weights(model_of(), tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    pytest.importorskip("coremltools")
    save_weights(model_of(), tmp_path / "c", weights_format="coreml")
    other = (tmp_path / "c").read_bytes()
    for content, words in (
        (whole[:-1], "damaged or cut off"),
        (whole[:300], "damaged or cut off"),
        (whole[:9], "damaged or cut off"),
        (b"", "neither safetensors nor CoreML"),
        (b"<html></html>", "neither safetensors nor CoreML"),
        (b"PK\x03\x04" + bytes(20), "ketos convert"),
        (other[: len(other) // 2], "damaged"),
        (b"\x08\x02", "without a VGSL spec"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            load_weights(tmp_path / "bad")
        assert str(tmp_path / "bad") in str(caught.value)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=str(path)):
            load_weights(path)
    save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(InputError, match="without kraken's metadata"):
        load_weights(tmp_path / "foreign")


def test_failed_writes_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would cost the weights that were there."""
    path = tmp_path / "m"
    save_weights(model_of(), path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        save_weights(model_of(metrics=[[1, {}]]), path)
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["m"]
    with pytest.raises(RunError, match="nowhere"):
        save_weights(model_of(), tmp_path / "nowhere" / "m")


def test_coreml_is_optional_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without coremltools, or with a nested network, would not learn what to do."""
    nested = model_of("[1,24,0,1 (Cr3,3,4 I) S1(1x0)1,3 O1c4]")
    pytest.importorskip("coremltools")
    with pytest.raises(InputError, match="use safetensors"):
        save_weights(nested, tmp_path / "m", weights_format="coreml")
    assert not names_in(tmp_path)
    real = builtins.__import__

    def without_coreml(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("coremltools"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_coreml)
    with pytest.raises(InputError, match=r"pip install 'ketos-distrib\[coreml\]'"):
        save_weights(model_of(), tmp_path / "m", weights_format="coreml")
    save_weights(nested, tmp_path / "m")
    assert load_weights(tmp_path / "m").network.spec == nested.network.spec
