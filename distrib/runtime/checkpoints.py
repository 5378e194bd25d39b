"""Checkpoints: files from which a run goes on, named as kraken names them, written whole or not at all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distrib.errors import InputError
from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel

STATE_KEY = "ketos"
"""Where our own state stands among Lightning's in a checkpoint."""

LAST = "last.ckpt"
# An accuracy is below 0 where more is inserted than the lines hold.
_NAME = re.compile(r"checkpoint_(\d+)-(-?\d+\.\d+)\.ckpt")
_NETWORK_PREFIX = "network."


def checkpoint_name(epoch: int, score: float) -> str:
    """``checkpoint_<epoch>-<score>.ckpt``; epochs count from 0 as kraken's do."""
    return f"checkpoint_{epoch:02d}-{score:.4f}.ckpt"


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint file of a run with what its name says."""

    path: Path
    epoch: int
    score: float


def saved_checkpoints(directory: Path) -> list[SavedCheckpoint]:
    """The named checkpoints of a run directory, worst first; of equal ones the later is the better."""
    found = []
    for path in directory.glob("checkpoint_*.ckpt"):
        if match := _NAME.fullmatch(path.name):
            found.append(SavedCheckpoint(path=path, epoch=int(match[1]), score=float(match[2])))
    return sorted(found, key=lambda each: (each.score, each.epoch))


def best_checkpoint(directory: Path) -> tuple[Path, float] | None:
    """The best checkpoint of a run directory with its exact score, the later of equal ones; None without any.

    Names hold four decimals: where the best agree in those, the scores inside decide.
    """
    saved = saved_checkpoints(directory)
    found = []
    for each in saved:
        if each.score == saved[-1].score:
            checkpoint = load_checkpoint(each.path)
            found.append((checkpoint[STATE_KEY]["score"], checkpoint["global_step"], each.path))
    if not found:
        return None
    score, _, path = max(found)
    return path, score


def prune_checkpoints(directory: Path, *, keep: int) -> None:
    """Remove all but the best ``keep`` named checkpoints."""
    for surplus in saved_checkpoints(directory)[:-keep]:
        surplus.path.unlink(missing_ok=True)


def checkpoint_to_resume(path: Path) -> Path:
    """The checkpoint meant by ``--resume``: a file, or the last one of a run directory."""
    if path.is_dir():
        last = path / LAST
        if not last.is_file():
            raise InputError(
                f"{path}: holds no {LAST} to resume from; name the directory of a run, or a checkpoint."
            )
        return last
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint to resume from; check its name.")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU; executes no pickled code. Raises InputError for anything else."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be read ({reason}); check its name and permissions.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on oddities of a damaged file
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # torch's unpickler raises whatever it runs into in damaged data, from OSError to IndexError.
    except Exception:
        raise InputError(
            f"{path}: not a checkpoint of this program, or damaged; give another (one of kraken's must be "
            "converted to weights with kraken's own `ketos convert` first)."
        ) from None
    state = checkpoint.get(STATE_KEY) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(state.get("model"), Mapping):
        raise InputError(
            f"{path}: not a checkpoint of this program; give another, or weights to start from with --load."
        )
    return dict(checkpoint)


def is_checkpoint(path: Path) -> bool:
    """True for files in torch's zip container, which weights files never are."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


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


def model_from_checkpoint(checkpoint: Mapping[str, Any]) -> RecognitionModel:
    """The model of a loaded checkpoint, ready to recognise or to be exported.

    Raises InputError where it is damaged.
    """
    try:
        return _assembled_model(checkpoint[STATE_KEY]["model"], checkpoint["state_dict"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        # Of our format, but with parts that are missing or do not fit each other.
        reason = str(error).splitlines()[0]
        raise InputError(f"the checkpoint is damaged ({reason}); give another.") from error


def _assembled_model(state: Mapping[str, Any], tensors: Mapping[str, Any]) -> RecognitionModel:
    network = VGSLNetwork(state["spec"])
    network.load_state_dict(
        {
            name.removeprefix(_NETWORK_PREFIX): tensor
            for name, tensor in tensors.items()
            if name.startswith(_NETWORK_PREFIX)
        }
    )
    return RecognitionModel(
        network=network,
        codec=Codec.from_mapping(state["codec"]),
        seg_type=state["seg_type"],
        one_channel_mode=state["one_channel_mode"],
        legacy_polygons=state["legacy_polygons"],
        metrics=state["metrics"],
        accuracy=state["accuracy"],
    )
