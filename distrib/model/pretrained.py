"""Networks that have learned to see and not yet to read: without an alphabet.

kraken gives a pretrained network the codec of a single space and an output layer for it, which was never
trained, and loads no other. Files that end before an output layer are understood as well.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch

from distrib.model import spec
from distrib.model.codec import Codec
from distrib.model.resize import ctc_layer
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import RecognitionModel

NO_ALPHABET = Codec({" ": [1]})
"""The codec of a pretrained network; no recogniser has it."""


def is_pretrained(model: RecognitionModel) -> bool:
    """Whether a model is a pretrained network, which reads nothing."""
    return not _has_output(model.network) or model.codec == NO_ALPHABET


@torch.no_grad()
def with_fresh_output(model: RecognitionModel, codec: Codec) -> RecognitionModel:
    """The model with an untrained output layer for ``codec`` in place of its own; other weights are kept.

    Raises InputError for a network with an output layer that is no CTC layer, or an output that cannot have
    one.
    """
    old = model.network
    kept = old.state_dict()
    if _has_output(old):
        prefix = f"nn.{ctc_layer(old).block.name}."
        kept = {name: value for name, value in kept.items() if not name.startswith(prefix)}
        text = re.sub(r"\d+\]$", f"{codec.num_classes}]", old.spec)
    else:
        text = recognition_spec(old.spec, codec.num_classes)
    network = VGSLNetwork(text)
    network.init_weights()
    network.load_state_dict({**network.state_dict(), **kept})
    return replace(model, network=network.train(old.training), codec=codec)


def _has_output(network: VGSLNetwork) -> bool:
    return isinstance(list(network.parsed.body.leaves())[-1], spec.Output)
