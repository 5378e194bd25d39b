"""Fitting a trained network's output layer to another alphabet."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.layers import HeatMapOutput, SequenceOutput
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel

ResizeMode = Literal["union", "new", "fail"]


def resize_output(model: RecognitionModel, alphabet: Iterable[str], mode: ResizeMode) -> RecognitionModel:
    """A model whose codec covers ``alphabet``; the given model stays as it is.

    ``union`` keeps all keys and appends new ones, in code point order, after the largest label. ``new``
    keeps the shared keys, drops the others and appends new ones. Kept keys keep their rows of the output
    layer and their order; new rows are drawn anew. ``fail`` returns the model if it has all characters;
    like kraken's it does not mind characters that only the model has.

    Raises InputError for ``fail`` where the model lacks characters (it names them), and for networks whose
    last block is not an output layer where that has to change.
    """
    wanted = set(alphabet)
    missing = {key for key in wanted if model.codec.unencodable(key)}
    surplus = set(model.codec.c2l) - wanted
    if mode == "fail":
        if missing:
            raise InputError(_difference(missing))
        return model
    if mode == "union":
        if not missing:
            return model
        codec = model.codec.add_labels(missing)
        return _with_rows(model, codec, list(range(model.network.num_classes)))
    if not missing and not surplus:
        return model
    target = Codec({key: labels for key, labels in model.codec.c2l.items() if key in wanted})
    codec, _ = model.codec.merge(target)
    kept = sorted({label for labels in target.c2l.values() for label in labels})
    return _with_rows(model, codec.add_labels(wanted - target.c2l.keys()), [0, *kept])


def _difference(missing: set[str]) -> str:
    shown = [f"{key!r} ({' '.join(f'U+{ord(point):04X}' for point in key)})" for key in sorted(missing)[:20]]
    names = ", ".join(shown)
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    return (
        f"the model's alphabet lacks {names}{more} of the training data; use --resize union to add to it or "
        "--resize new to replace it"
    )


@torch.no_grad()
def _with_rows(model: RecognitionModel, codec: Codec, rows: list[int]) -> RecognitionModel:
    """The model with the given rows of its output layer first and new ones behind, as the codec needs.

    A union keeps rows of labels that no key has, too, so that all labels stay where they are.
    """
    old = model.network
    layer = list(old.nn.children())[-1]
    if not isinstance(layer, SequenceOutput | HeatMapOutput):
        raise InputError(
            f"the last block of {old.spec} is not an output layer, so that it cannot be resized; train a new "
            "network or use --resize fail"
        )
    classes = max(codec.num_classes, len(rows))
    spec = re.sub(r"\d+\]$", f"{classes}]", old.spec)
    network = VGSLNetwork(spec)
    network.init_weights()
    state = copy.deepcopy(old.state_dict())
    prefix = f"nn.{layer.block.name}."
    for name, fresh in network.state_dict().items():
        if name.startswith(prefix):
            state[name] = _grown(state[name], fresh, rows)
    network.load_state_dict(state)
    device = next(iter(old.parameters())).device
    network.to(device).train(old.training)
    for parameter, trained in zip(network.parameters(), old.parameters(), strict=True):
        parameter.requires_grad_(trained.requires_grad)
    return replace(model, network=network, codec=codec)


def _grown(old: Tensor, fresh: Tensor, rows: list[int]) -> Tensor:
    grown = fresh.to(old.device, old.dtype).clone()
    grown[: len(rows)] = old[rows]
    return grown
