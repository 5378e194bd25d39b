"""Weights files: a recognition network with its codec and the rest of what inference needs to know.

Reads and writes kraken's safetensors layout and the older CoreML format, without kraken. Nothing that is
read is ever executed, and no memory is set aside for a network before its tensors are known to fit it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import torch
from torch import Tensor

from distrib.errors import InputError, RunError
from distrib.files import AsideFile
from distrib.model.codec import Codec
from distrib.model.coreml import read_coreml, write_coreml
from distrib.model.layers import Layer
from distrib.model.safetensors_file import Entry, read_entries, write_entries
from distrib.model.vgsl import VGSLNetwork

SegType = Literal["bbox", "baselines"]
OneChannelMode = Literal["1", "L"]
WeightsFormat = Literal["safetensors", "coreml"]

_MIN_VERSION = "5.0.0"
_STRUCTURE_KEYS = frozenset({"_kraken_min_version", "_tasks", "_model", "model_type", "vgsl", "codec"})
_FIELD_KEYS = frozenset({"accuracy", "metrics", "seg_type", "one_channel_mode", "legacy_polygons"})


@dataclass(kw_only=True)
class RecognitionModel:
    """A network and what belongs to it.

    ``seg_type`` is the line type it was trained on, ``one_channel_mode`` the mode of one-channel line
    images, ``legacy_polygons`` whether lines were extracted in kraken's old way, ``metrics`` pairs
    ``[epoch, {name: value}]``. ``extra`` holds metadata that other programs put into the model's entry,
    ``file_metadata`` what stands in the file beside it, texts by name; both are written back.
    """

    network: VGSLNetwork
    codec: Codec
    seg_type: SegType = "bbox"
    one_channel_mode: OneChannelMode | None = None
    legacy_polygons: bool = False
    metrics: list[Any] = field(default_factory=list)
    accuracy: list[Any] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    file_metadata: dict[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """The model's entry in ``kraken_meta`` of a safetensors file."""
        return {
            **self.extra,
            "_kraken_min_version": _MIN_VERSION,
            "_tasks": ["recognition"],
            "_model": "TorchVGSLModel",
            "accuracy": self.accuracy,
            "metrics": self.metrics,
            "seg_type": self.seg_type,
            "one_channel_mode": self.one_channel_mode,
            "model_type": ["recognition"],
            "vgsl": self.network.spec,
            # An object: kraken 7.1.1 does not load safetensors weights with a codec as JSON text.
            "codec": self.codec.c2l,
            "legacy_polygons": self.legacy_polygons,
        }


def load_weights(path: Path | str) -> RecognitionModel:
    """Read the recognition model of a weights file, on the CPU and in evaluation mode.

    The format is told from the content. Raises InputError for a file that is missing, damaged, of
    another format or task, or whose tensors do not fit its spec.
    """
    path = Path(path)
    if _is_safetensors(path):
        entries, file_metadata = read_entries(path)
        entry = _recognition_entry(path, entries)
        network = _empty_network(path, entry.metadata)
        model = _assemble(path, entry.metadata, network, entry.tensors)
        model.file_metadata = file_metadata
        return model
    content = read_coreml(path)
    _refuse_other_tasks(path, Entry(metadata=content.metadata).tasks)
    network = _empty_network(path, content.metadata)
    model = _assemble(path, content.metadata, network, _tensors_of_layers(path, network, content.layers))
    model.file_metadata = content.file_metadata
    return model


def save_weights(
    model: RecognitionModel,
    path: Path | str,
    *,
    weights_format: WeightsFormat = "safetensors",
    tensors: Mapping[str, Tensor] | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Write a weights file that kraken 7 reads, whole or not at all; the same model gives the same bytes.

    ``tensors`` by name are written in place of the network's own, which may then be without memory; one is
    held at a time. They are for safetensors only. ``verify`` gets the file that was written before it takes
    its name; where it raises, what was there before stays.

    Raises InputError where the model does not fit the format or coremltools is missing, RunError where
    the file cannot be written.
    """
    path = Path(path)
    try:
        with AsideFile(path) as aside:
            _write(model, aside.file, path, weights_format, tensors)
            aside.file.flush()
            if verify is not None:
                verify(Path(aside.file.name))
            aside.commit()
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path}: cannot be written ({reason}); name another place or make room") from error


class PlainTensors(Mapping[str, Tensor]):
    """Tensors as weights files hold them, on the CPU in float32 whatever they are trained in; made one at a
    time when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].detach().to("cpu", torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _write(
    model: RecognitionModel,
    file: BinaryIO,
    path: Path,
    weights_format: WeightsFormat,
    tensors: Mapping[str, Tensor] | None,
) -> None:
    metadata = model.metadata()
    if weights_format == "coreml":
        kept = {key: value for key, value in metadata.items() if not key.startswith("_")}
        kept |= {"model_type": "recognition", "codec": json.dumps(model.codec.c2l)}
        write_coreml(model.network, kept, file, path=path, file_metadata=model.file_metadata)
        return
    state = model.network.state_dict() if tensors is None else tensors
    entry = Entry(metadata=metadata, tensors=PlainTensors(state))
    write_entries([entry], file, file_metadata=model.file_metadata)


def _is_safetensors(path: Path) -> bool:
    """True for safetensors, False for what may be CoreML; raises InputError for what is neither."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a weights file") from error
    # safetensors: 8 bytes for the length of a JSON object; CoreML: protobuf with the version first.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return True
    if head[:1] == b"\x08":
        return False
    remedy = "turn the checkpoint into weights with ketos convert" if head[:2] == b"PK" else "give weights"
    raise InputError(f"{path}: neither safetensors nor CoreML weights; {remedy}")


def _recognition_entry(path: Path, entries: list[Entry]) -> Entry:
    """The recognition network among the models of a file (beside it there may be a mask layer)."""
    networks = [
        entry
        for entry in entries
        if "vgsl" in entry.metadata and ("recognition" in entry.tasks or not entry.tasks)
    ]
    if not networks:
        _refuse_other_tasks(path, tuple(sorted({task for entry in entries for task in entry.tasks})))
        raise InputError(f"{path}: holds no recognition network; give the weights of one")
    if len(networks) > 1:
        raise InputError(f"{path}: holds {len(networks)} recognition networks; give a file with one")
    return networks[0]


def _refuse_other_tasks(path: Path, tasks: tuple[str, ...]) -> None:
    if tasks and "recognition" not in tasks:
        raise InputError(
            f"{path}: weights for {', '.join(tasks)}, not for recognition; give the weights of a recogniser"
        )


def _empty_network(path: Path, metadata: Mapping[str, Any]) -> VGSLNetwork:
    """The network of a spec without memory for its parameters."""
    text = metadata["vgsl"]
    if not isinstance(text, str):
        raise InputError(f"{path}: its VGSL spec is not a string; copy the file again")
    try:
        with torch.device("meta"):
            return VGSLNetwork(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _assemble(
    path: Path, metadata: Mapping[str, Any], network: VGSLNetwork, tensors: Mapping[str, Tensor]
) -> RecognitionModel:
    _refuse_unfit_tensors(path, network, tensors)
    state = {name: value.to(torch.float32).contiguous() for name, value in tensors.items()}
    network.load_state_dict(state, assign=True)
    network.requires_grad_(True)
    network.eval()
    codec = _codec(path, metadata.get("codec"))
    if codec.max_label >= network.num_classes:
        raise InputError(
            f"{path}: its codec has labels up to {codec.max_label}, its output layer only up to "
            f"{network.num_classes - 1}; copy the file again"
        )
    seg_type = metadata.get("seg_type") or "bbox"
    mode = metadata.get("one_channel_mode")
    if seg_type not in ("bbox", "baselines") or mode not in (None, "1", "L"):
        raise InputError(
            f"{path}: its metadata has the unknown seg_type {seg_type!r} or one_channel_mode {mode!r}; "
            "copy the file again"
        )
    metrics, accuracy = metadata.get("metrics"), metadata.get("accuracy")
    return RecognitionModel(
        network=network,
        codec=codec,
        seg_type=cast(SegType, seg_type),
        one_channel_mode=cast("OneChannelMode | None", mode),
        legacy_polygons=bool(metadata.get("legacy_polygons", True)),
        metrics=metrics if isinstance(metrics, list) else [],
        accuracy=accuracy if isinstance(accuracy, list) else [],
        extra={key: value for key, value in metadata.items() if key not in _STRUCTURE_KEYS | _FIELD_KEYS},
    )


def _codec(path: Path, stored: object) -> Codec:
    """A codec from JSON text or an object; files of pretraining may have none."""
    try:
        mapping = json.loads(stored) if isinstance(stored, str) else stored
        if mapping is not None and not isinstance(mapping, dict):
            raise InputError("codec: not an object of labels")
        return Codec.from_mapping(mapping or {})
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its codec cannot be read ({error}); copy the file again") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _refuse_unfit_tensors(path: Path, network: VGSLNetwork, tensors: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    problem = ""
    if missing := sorted(expected.keys() - found.keys()):
        problem = f"{missing[0]} is missing"
    elif unknown := sorted(found.keys() - expected.keys()):
        problem = f"{unknown[0]} is not in the spec"
    elif other := [name for name, shape in expected.items() if found[name] != shape]:
        problem = f"{other[0]} has the shape {found[other[0]]} instead of {expected[other[0]]}"
    elif complex_ := [name for name, value in tensors.items() if not value.is_floating_point()]:
        problem = f"{complex_[0]} does not hold floating-point numbers"
    if problem:
        raise InputError(f"{path}: its tensors do not fit its spec {network.spec}: {problem}")


def _tensors_of_layers(
    path: Path, network: VGSLNetwork, layers: Mapping[str, Mapping[str, Any]]
) -> dict[str, Tensor]:
    """A state dictionary from CoreML's flat parameters, which are filed under the blocks' names alone."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in network.named_modules():
        if not isinstance(module, Layer):
            continue
        for name, flat in layers.get(module.block.name, {}).items():
            expected = dict(module.named_parameters()).get(name)
            value = torch.from_numpy(flat.copy())
            if expected is not None and expected.numel() == value.numel():
                value = value.reshape(expected.shape)
            tensors[f"{prefix}.{name}"] = value
    if not tensors and any(True for _ in network.parameters()):
        raise InputError(
            f"{path}: holds no layers of a neural network; give weights written by ketos or kraken"
        )
    return tensors
