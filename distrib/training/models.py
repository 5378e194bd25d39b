"""The model a run starts from: fresh from a spec, loaded from weights, and how its input is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrib.config.learning import Learning, Train
from distrib.errors import InputError
from distrib.ground_truth.network_input import NetworkInput
from distrib.model.codec import Codec
from distrib.model.coreml import refuse_unfit
from distrib.model.grammar import parse_spec
from distrib.model.shapes import input_shape
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import RecognitionModel, SegType, load_weights
from distrib.runtime.checkpoints.contents import model_from_checkpoint
from distrib.runtime.checkpoints.names import is_checkpoint
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.stream.lines import LineCollection
from distrib.training.provenance import file_metadata

_MOST_LABELS = 1_114_112
"""As many as Unicode has code points: an output layer beyond is a slip of the pen."""


def load_model(path: Path) -> RecognitionModel:
    """The model of a weights file (safetensors, CoreML) or of a checkpoint of ours, with what they say of its
    making in ``file_metadata``.

    Raises InputError where the file is missing, damaged or of another task.
    """
    if not path.exists():
        raise InputError(f"{path}: no such weights file or checkpoint; check its name.")
    if is_checkpoint(path):
        checkpoint = open_checkpoint(path)
        try:
            model = model_from_checkpoint(checkpoint)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        model.file_metadata = file_metadata(checkpoint.common)
        return model
    if path.is_dir():
        raise InputError(f"{path}: a folder, and no checkpoint; name a weights file or checkpoint in it.")
    return load_weights(path)


def network_input_of(model: RecognitionModel, *, padding: int) -> NetworkInput:
    """How a line image becomes input of this model; ``padding`` in columns on either side."""
    _, channels, height, width = model.network.input_shape
    if channels not in (1, 3):
        raise InputError(
            f"VGSL spec `{model.network.spec}`: the input has {channels} channels, but a line image has 1 "
            "(grey) or 3 (colour); give one of these as the last number of the input block."
        )
    return NetworkInput(
        height=height,
        width=width,
        channels=channels,
        one_channel_mode=model.one_channel_mode,
        pad=padding,
        centerline=model.seg_type == "bbox" and channels == 1,
    )


def input_height(options: Learning) -> int:
    """The height that lines can be normalised to once for the network that the options lead to.

    0 where its input is not a grey line of fixed height, or the network is that of a checkpoint to resume.
    """
    if options.resume is not None:
        return 0
    if options.load is not None:
        _, channels, height, width = load_model(options.load).network.input_shape
    else:
        shape = input_shape(parse_spec(recognition_spec(options.spec, 2)))
        channels, height, width = shape.channels, shape.height, shape.width
    return height if channels == 1 and width == 0 else 0


def new_model(options: Learning, training: LineCollection, codec: Codec) -> RecognitionModel:
    """A network of ``--spec`` with an output layer for ``codec`` and fresh weights."""
    spec = recognition_spec(options.spec, codec.num_classes)
    try:
        network = VGSLNetwork(spec)
    except (RuntimeError, MemoryError) as error:  # torch's allocator raises the former
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        raise InputError(f"--spec {options.spec}: too large a network ({reason}); make it smaller.") from None
    network.init_weights()
    if options.weights_format == "coreml":
        refuse_unfit(network, options.checkpoint_path)
    channels = network.input_shape[1]
    return RecognitionModel(
        network=network,
        codec=codec,
        seg_type=line_type_of(training),
        one_channel_mode=None if channels != 1 else "1" if training.bitonal else "L",
        legacy_polygons=training.legacy_polygons,
    )


def read_codec(codec: Mapping[str, Any] | Path | None) -> dict[str, Any] | None:
    """The codec of ``-c``: a mapping as it stands in an experiment file, or a JSON file of one."""
    if codec is None or isinstance(codec, Mapping):
        return None if codec is None else _checked_codec(dict(codec), "--codec")
    try:
        # With or without the mark that some editors put first.
        definition = json.loads(codec.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except InputError as error:
        raise InputError(f"{codec}: {error}") from None
    except OSError as error:
        raise InputError(f"{codec}: the codec cannot be read ({error.strerror}); check its name.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{codec}: the codec is not JSON ({error}); correct it.") from None
    if not isinstance(definition, dict):
        raise InputError(f"{codec}: a codec is a JSON object of characters and their labels; make it one.")
    return _checked_codec(definition, str(codec))


def codec_notes(options: Train, codec: Codec) -> tuple[str, ...]:
    """What to know of a codec that was given before training on it."""
    unused = codec.unused
    if options.codec is None or not unused:
        return ()
    named = ", ".join(map(str, unused[:10])) + (f" and {len(unused) - 10} more" if len(unused) > 10 else "")
    return (f"labels of --codec that no character has: {named}; the output layer learns them for nothing",)


def _checked_codec(definition: dict[str, Any], place: str) -> dict[str, Any]:
    """The definition of a codec, if it is valid; ``place`` stands for it in messages."""
    if not definition:
        raise InputError(f"{place}: the codec is empty; give each character one or more labels.")
    try:
        labels = Codec.from_mapping(definition).max_label
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    if labels > _MOST_LABELS:
        raise InputError(f"{place}: the codec has labels up to {labels}; number them from 1 without gaps.")
    return definition


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key given twice JSON takes the last without a word."""
    definition = dict(pairs)
    if len(definition) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        first, second = [value for key, value in pairs if key == twice][:2]
        raise InputError(
            f"codec: {twice!r} is there more than once, with {first!r} and {second!r}; keep one of them."
        )
    return definition


def line_type_of(collection: LineCollection) -> SegType:
    """The line type of a data set as weights files name it."""
    return "bbox" if collection.line_type == "bbox" else "baselines"
