"""kraken's safetensors layout: several models in one file, each with metadata and tensors.

The file's metadata has one key, ``kraken_meta``: a JSON object from each model's UUID to its metadata.
A tensor is named ``<uuid>.<name>``.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distrib.errors import InputError
from distrib.files import written_whole

METADATA_KEY = "kraken_meta"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of a weights file: its metadata (JSON values) and its tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model is for: ``recognition``, ``segmentation``, ``reading_order``, …"""
        tasks = self.metadata.get("_tasks") or self.metadata.get("model_type") or ()
        return (tasks,) if isinstance(tasks, str) else tuple(str(task) for task in tasks)


def read_entries(path: Path) -> tuple[list[Entry], dict[str, str]]:
    """The models of a file, tensors on the CPU, and the file's other metadata.

    Raises InputError for a file that is damaged or is not in kraken's layout.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or cut off ({error}); copy the file again") from error
    models = _models(path, metadata.pop(METADATA_KEY, None))
    entries = []
    for key, values in models.items():
        prefix = f"{key}."
        own = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        entries.append(Entry(metadata=values, tensors=own))
    return entries, metadata


def write_entries(
    entries: Sequence[Entry], path: Path, *, file_metadata: Mapping[str, str] | None = None
) -> None:
    """Write models to a file, whole or not at all. The same models give the same bytes."""
    named = {_identifier(entry): entry for entry in entries}
    tensors = {
        # Copies, because the format refuses tensors that share memory.
        f"{key}.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, entry in named.items()
        for name, value in entry.tensors.items()
    }
    models = json.dumps({key: dict(entry.metadata) for key, entry in named.items()})
    content = safetensors.torch.save(tensors, metadata={**(file_metadata or {}), METADATA_KEY: models})
    with written_whole(path) as file:
        file.write(content)


def _models(path: Path, text: str | None) -> dict[str, dict[str, Any]]:
    if text is None:
        raise InputError(
            f"{path}: a safetensors file without kraken's metadata; give weights written by ketos or kraken"
        )
    try:
        models = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error}); copy the file again") from error
    if not isinstance(models, dict) or not all(isinstance(values, dict) for values in models.values()):
        raise InputError(f"{path}: its metadata is not a list of models; copy the file again")
    return models


def _identifier(entry: Entry) -> str:
    """A UUID made from the content, so that the same weights give the same file."""
    digest = hashlib.sha256(json.dumps(dict(entry.metadata), sort_keys=True).encode())
    for name, value in sorted(entry.tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return str(uuid.UUID(bytes=digest.digest()[:16], version=4))
