"""The model a run starts from: fresh from a spec, loaded from weights, and how its input is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distrib.config.sections import Train
from distrib.errors import InputError
from distrib.ground_truth.network_input import NetworkInput
from distrib.model.codec import Codec
from distrib.model.resize import ResizeMode, resize_output
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import RecognitionModel, load_weights
from distrib.runtime.checkpoints import is_checkpoint, load_checkpoint, model_from_checkpoint
from distrib.stream.lines import LineCollection

_RESIZE_MODES: dict[str, ResizeMode] = {
    "union": "union",
    "add": "union",
    "new": "new",
    "both": "new",
    "fail": "fail",
}
"""``add`` and ``both`` are what kraken called ``union`` and ``new`` before."""


def load_model(path: Path) -> RecognitionModel:
    """The model of a weights file (safetensors, CoreML) or of a checkpoint of ours.

    Raises InputError where the file is missing, damaged or of another task.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file or checkpoint.")
    if is_checkpoint(path):
        return model_from_checkpoint(load_checkpoint(path))
    return load_weights(path)


def network_input_of(model: RecognitionModel, *, padding: int) -> NetworkInput:
    """How a line image becomes input of this model; ``padding`` in columns on either side."""
    _, channels, height, width = model.network.input_shape
    return NetworkInput(
        height=height,
        width=width,
        channels=channels,
        one_channel_mode=model.one_channel_mode,
        pad=padding,
        centerline=model.seg_type == "bbox" and channels == 1,
    )


def new_model(options: Train, training: LineCollection, codec: Codec) -> RecognitionModel:
    """A network of ``--spec`` with an output layer for ``codec`` and fresh weights."""
    network = VGSLNetwork(recognition_spec(options.spec, codec.num_classes))
    network.init_weights()
    channels = network.input_shape[1]
    return RecognitionModel(
        network=network,
        codec=codec,
        seg_type="bbox" if training.line_type == "bbox" else "baselines",
        one_channel_mode=None if channels != 1 else "1" if training.bitonal else "L",
        legacy_polygons=training.legacy_polygons,
    )


def fine_tuned_model(options: Train, path: Path, alphabet: Iterable[str]) -> RecognitionModel:
    """The model of ``--load`` with its output layer fitted to ``alphabet`` as ``--resize`` says.

    Raises InputError where the file is no model, or ``--resize fail`` meets characters it lacks.
    """
    try:
        return resize_output(load_model(path), alphabet, _RESIZE_MODES[options.resize])
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def read_codec(codec: Mapping[str, Any] | Path | None) -> dict[str, Any] | None:
    """The codec of ``-c``: a mapping as it stands in an experiment file, or a JSON file of one."""
    if codec is None or isinstance(codec, Mapping):
        return None if codec is None else dict(codec)
    try:
        definition = json.loads(codec.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{codec}: the codec cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise InputError(f"{codec}: the codec is not JSON ({error}).") from None
    if not isinstance(definition, dict):
        raise InputError(f"{codec}: a codec is a JSON object of characters and their labels.")
    return definition
