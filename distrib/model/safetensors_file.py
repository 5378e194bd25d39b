"""kraken's safetensors layout: several models in one file, each with metadata and tensors.

The file's metadata has one key, ``kraken_meta``: a JSON object from each model's UUID to its metadata.
A tensor is named ``<uuid>.<name>``.

Files are read with the library of the format and written here: the library wants all tensors in memory at
once, twice over, and puts a file's metadata in another order each time. The format is 8 bytes for the length
of a JSON header, the header, and the tensors as they lie in memory, largest elements first, then by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from distrib.errors import InputError

METADATA_KEY = "kraken_meta"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of a weights file: its metadata (JSON values) and its tensors by name.

    In writing, each tensor is asked for three times and let go again: it may be made when it is asked for.
    """

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
    entries: Sequence[Entry], file: BinaryIO, *, file_metadata: Mapping[str, str] | None = None
) -> None:
    """Write models to an open file, one tensor in memory at a time. The same models give the same bytes."""
    named = {_identifier(entry): entry for entry in entries}
    models = json.dumps({key: dict(entry.metadata) for key, entry in named.items()})
    header: dict[str, Any] = {"__metadata__": {**(file_metadata or {}), METADATA_KEY: models}}
    places = _places(named)
    position = 0
    for full_name, place in places.items():
        size = place.elements * place.dtype.itemsize
        header[full_name] = {
            "dtype": _DTYPES[place.dtype],
            "shape": list(place.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for place in places.values():
        file.write(_bytes(place.entry.tensors[place.name]))


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A tensor of an entry, without its values."""

    entry: Entry
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def _places(named: Mapping[str, Entry]) -> dict[str, _Place]:
    """The tensors of all entries by their names in the file, in the order that the format asks for."""
    places = {
        f"{key}.{name}": _place(entry, name, entry.tensors[name])
        for key, entry in named.items()
        for name in entry.tensors
    }
    return dict(sorted(places.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def _place(entry: Entry, name: str, value: Tensor) -> _Place:
    return _Place(entry=entry, name=name, shape=tuple(value.shape), dtype=value.dtype)


def _bytes(value: Tensor) -> Any:
    """A buffer (n,) of the values row by row as they are stored; no copy where they lie so in memory."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


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
    for name in sorted(entry.tensors):
        digest.update(name.encode())
        digest.update(_bytes(entry.tensors[name]))
    return str(uuid.UUID(bytes=digest.digest()[:16], version=4))
