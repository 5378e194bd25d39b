"""Fitting a trained network's output layer to another alphabet."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from distrib.errors import InputError
from distrib.model import spec
from distrib.model.codec import Codec
from distrib.model.layers import SequenceOutput
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel

ResizeMode = Literal["union", "new", "fail"]

_MOST_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class CodecDifference:
    """What an alphabet and a model's codec do not share.

    ``lacking`` are characters that the model has no labels for, with how often they occur; ``surplus`` are
    keys of the model that the alphabet has no use for. Both are in code point order.
    """

    lacking: Mapping[str, int]
    surplus: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.lacking or self.surplus)

    def __str__(self) -> str:
        """``the model lacks 'ä' (U+00E4, 12 times), and only the model has 'q' (U+0071)``."""
        parts = []
        if self.lacking:
            named = [f"{_name(key)[:-1]}, {_times(count)})" for key, count in self.lacking.items()]
            parts.append(f"the model lacks {_listed(named)}")
        if self.surplus:
            parts.append(f"only the model has {_listed([_name(key) for key in self.surplus])}")
        return ", and ".join(parts)


def codec_difference(codec: Codec, alphabet: Iterable[str]) -> CodecDifference:
    """Compare a codec with an alphabet; one that is a ``Counter`` says how often each character occurs.

    A key of several code points is of use where the alphabet has all of them.
    """
    counts = Counter(alphabet)
    points = {point for key in counts for point in key}
    return CodecDifference(
        lacking={key: counts[key] for key in sorted(counts) if codec.unencodable(key)},
        surplus=tuple(sorted(key for key in codec.c2l if key not in counts and not _composed(key, points))),
    )


def resize_output(model: RecognitionModel, alphabet: Iterable[str], mode: ResizeMode) -> RecognitionModel:
    """A model whose codec covers ``alphabet``; the given model stays as it is.

    ``union`` keeps all keys and appends new ones, in code point order, after the largest label. ``new``
    keeps the shared keys, drops the others and appends new ones. Kept keys keep their rows of the output
    layer and their order; new rows are drawn anew. ``fail`` returns the model if it has all characters;
    like kraken's it does not mind characters that only the model has.

    Raises InputError for ``fail`` where the model lacks characters (it names the difference), and for
    networks whose last block is not a CTC output layer.
    """
    layer = ctc_layer(model.network)
    difference = codec_difference(model.codec, alphabet)
    if mode == "fail":
        if difference.lacking:
            raise InputError(
                f"its alphabet is not that of the training data: {difference}; use --resize union to add to "
                "it or --resize new to replace it"
            )
        return model
    if mode == "union":
        if not difference.lacking:
            return model
        codec = model.codec.add_labels(difference.lacking.keys())
        return _with_rows(model, layer, codec, list(range(model.network.num_classes)))
    if not difference:
        return model
    shared = {key: labels for key, labels in model.codec.c2l.items() if key not in difference.surplus}
    codec, _ = model.codec.merge(Codec(shared))
    kept = sorted({label for labels in shared.values() for label in labels})
    return _with_rows(model, layer, codec.add_labels(difference.lacking.keys()), [0, *kept])


def ctc_layer(network: VGSLNetwork) -> SequenceOutput:
    """The output layer of a recogniser. Raises InputError for a network that ends in anything else."""
    block = list(network.parsed.body.leaves())[-1]
    layer = list(network.nn.children())[-1]
    if not isinstance(block, spec.Output):
        problem = "has no output layer"
    elif block.dimensions != 1 or block.kind != "c":
        problem = f"ends in `{block.text}`, which is no CTC output layer"
    elif not isinstance(layer, SequenceOutput):
        problem = f"has its output layer `{block.text}` inside of a group of blocks"
    else:
        return layer
    raise InputError(
        f"its network {network.spec} {problem} (O1c and a number of labels), so that it cannot read lines; "
        "give the weights of a recogniser"
    )


def _composed(key: str, points: set[str]) -> bool:
    return len(key) > 1 and points.issuperset(key)


def _name(key: str) -> str:
    return f"{key!r} ({' '.join(f'U+{ord(point):04X}' for point in key)})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _listed(named: list[str]) -> str:
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more


@torch.no_grad()
def _with_rows(
    model: RecognitionModel, layer: SequenceOutput, codec: Codec, rows: list[int]
) -> RecognitionModel:
    """The model with the given rows of its output layer first and new ones behind, as the codec needs.

    A union keeps rows of labels that no key has, too, so that all labels stay where they are.
    """
    old = model.network
    classes = max(codec.num_classes, len(rows))
    network = VGSLNetwork(re.sub(r"\d+\]$", f"{classes}]", old.spec))
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
