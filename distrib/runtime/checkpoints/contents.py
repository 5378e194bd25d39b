"""What a run finds in checkpoints: the one to resume from, its own state, the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel
from distrib.runtime.checkpoints.names import is_checkpoint
from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint
from distrib.runtime.checkpoints.record import newest_valid
from distrib.runtime.state import WEIGHTS, state_key

STATE_KEY = "ketos"
"""Where our own state stands among Lightning's in a checkpoint."""

AVERAGES = "ema"
"""The kind of what the optimizer keeps of a parameter that is its moving average."""

EXTRA = "extra."
"""How the names of trained parameters begin that help the network to learn and are not its own."""

_RUN_STATE = frozenset(
    {"model", "score", "stopping", "stream", "validation_due", "counts", "proof", "experiment", "provenance"}
)


def checkpoint_to_resume(path: Path, *, report: Callable[[str], None] = lambda _: None) -> Path:
    """The checkpoint meant by ``--resume``: itself, or the newest whole one of a run directory.

    ``report`` gets a sentence for each newer one that is broken. Raises InputError where there is none.
    """
    if path.is_dir() and not is_checkpoint(path):
        found = newest_valid(path, report=report)
        if found is None:
            raise InputError(
                f"{path}: holds no whole checkpoint to resume from; name the directory of a run, or a "
                "checkpoint, or move what is damaged away to begin anew."
            )
        return found
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint to resume from; check its name.")
    open_checkpoint(path)
    return path


def run_state(checkpoint: CheckpointReader) -> Mapping[str, Any]:
    """What a run keeps of itself in a checkpoint. Raises InputError where parts of it are missing."""
    state = checkpoint.common.get(STATE_KEY)
    if not isinstance(state, Mapping) or not state.keys() >= _RUN_STATE:
        missing = sorted(_RUN_STATE - state.keys()) if isinstance(state, Mapping) else [STATE_KEY]
        raise InputError(
            f"{checkpoint.path}: the checkpoint is damaged or of another version, without {missing[0]}; "
            "start from its weights with --load."
        )
    return state


def model_state(model: RecognitionModel) -> dict[str, Any]:
    """What a checkpoint holds of a model besides its tensors, in plain types."""
    return {
        "spec": model.network.spec,
        "codec": {character: list(labels) for character, labels in model.codec.c2l.items()},
        "seg_type": model.seg_type,
        "one_channel_mode": model.one_channel_mode,
        "legacy_polygons": model.legacy_polygons,
        "metrics": model.metrics,
        "accuracy": model.accuracy,
    }


def model_from_checkpoint(checkpoint: CheckpointReader) -> RecognitionModel:
    """The model of a checkpoint as it was validated, to recognise with or to be exported; tensors are read
    one at a time.

    Raises InputError where it is damaged or holds no such model.
    """
    try:
        state = checkpoint.common[STATE_KEY]["model"]
        return RecognitionModel(
            network=_network(state["spec"], checkpoint),
            codec=Codec.from_mapping(state["codec"]),
            seg_type=state["seg_type"],
            one_channel_mode=state["one_channel_mode"],
            legacy_polygons=state["legacy_polygons"],
            metrics=state["metrics"],
            accuracy=state["accuracy"],
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        # Of our format, but with parts that are missing or do not fit each other.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the checkpoint is damaged ({reason}); give another.") from error


def network_keys(checkpoint: CheckpointReader) -> dict[str, str]:
    """The keys of the network's tensors by name: what was validated, and is to be recognised with.

    That are moving averages where a run has kept some, and the weights that it goes on from where not.
    """
    prefix = state_key(WEIGHTS, "")
    weights = {key.removeprefix(prefix): key for key in checkpoint.shapes if key.startswith(prefix)}
    keys = {}
    for name, key in weights.items():
        if not name.startswith(EXTRA):
            average = state_key(AVERAGES, name)
            keys[name] = average if average in checkpoint.shapes else key
    return keys


def _network(spec: str, checkpoint: CheckpointReader) -> VGSLNetwork:
    network = VGSLNetwork(spec)
    state, keys = network.state_dict(), network_keys(checkpoint)
    unlike = state.keys() ^ keys.keys()
    if unlike:
        raise KeyError(state_key(WEIGHTS, min(unlike)))
    with torch.no_grad():
        for name, tensor in state.items():
            key = keys[name]
            if checkpoint.shapes[key] != tuple(tensor.shape):
                raise TypeError(f"{key} has the shape {checkpoint.shapes[key]}")
            tensor.copy_(checkpoint.tensor(key))
    return network
