"""A model that was never trained and yet reads all kinds of characters, most of them wrongly."""

from __future__ import annotations

from pathlib import Path

import torch

from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import RecognitionModel, save_weights

from .conftest import TINY_SPEC


def write_untrained(path: Path, *, seed: int) -> Path:
    """Write its weights file; equal for equal seeds. It says that it was trained on baseline lines."""
    torch.manual_seed(seed)
    codec = Codec.from_alphabet("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,")
    network = VGSLNetwork(recognition_spec(TINY_SPEC, codec.num_classes))
    network.init_weights()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Scores that differ much, the blank's raised so that texts are about as long as they should be.
            parameter.mul_(5)
            if name.endswith("lin.bias"):
                parameter[0] = 2
    save_weights(
        RecognitionModel(network=network, codec=codec, seg_type="baselines", one_channel_mode="L"), path
    )
    return path
