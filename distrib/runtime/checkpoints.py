"""Checkpoints: files from which a run goes on, named as kraken names them, written whole or not at all."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from distrib.errors import InputError, RunError
from distrib.files import written_whole
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


def prune_checkpoints(directory: Path, *, keep: int) -> None:
    """Remove all but the best ``keep`` named checkpoints."""
    for surplus in saved_checkpoints(directory)[:-keep]:
        surplus.path.unlink(missing_ok=True)


def checkpoint_to_resume(path: Path) -> Path:
    """The checkpoint meant by ``--resume``: a file, or the last one of a run directory."""
    if path.is_dir():
        last = path / LAST
        if not last.is_file():
            raise InputError(f"{path}: holds no {LAST} to resume from.")
        return last
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint to resume from.")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, on the CPU; executes no pickled code. Raises InputError for anything else."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError):
        raise InputError(
            f"{path}: not a checkpoint of this program, or damaged (one of kraken's must be converted to "
            "weights with kraken's own `ketos convert` first)."
        ) from None
    if not isinstance(checkpoint, Mapping) or STATE_KEY not in checkpoint:
        raise InputError(f"{path}: not a checkpoint of this program.")
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
    """The model of a loaded checkpoint, ready to recognise or to be exported."""
    state = checkpoint[STATE_KEY]["model"]
    network = VGSLNetwork(state["spec"])
    tensors = {
        name.removeprefix(_NETWORK_PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(_NETWORK_PREFIX)
    }
    network.load_state_dict(tensors)
    return RecognitionModel(
        network=network,
        codec=Codec.from_mapping(state["codec"]),
        seg_type=state["seg_type"],
        one_channel_mode=state["one_channel_mode"],
        legacy_polygons=state["legacy_polygons"],
        metrics=state["metrics"],
        accuracy=state["accuracy"],
    )


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to disk: written aside, flushed, renamed; read without executing pickled code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``. Raises RunError where the disk does not take it."""
        target = Path(path)
        try:
            with written_whole(target) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise RunError(f"{target}: the checkpoint could not be written ({error}).") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint of ours."""
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint file."""
        Path(path).unlink(missing_ok=True)
