"""Where two checkpoints differ, to the bit: what is compared of runs that must have ended alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distrib.runtime.checkpoints.reader import CheckpointReader


def differences(one: CheckpointReader, other: CheckpointReader) -> list[str]:
    """The places where two checkpoints differ, sorted; empty where they hold the same state.

    A tensor's place is its key, such as ``weights/L_3.layer.weight``; that of another value leads through
    ``groups`` or ``common``, such as ``common/ketos/stream/step``. Strategies and numbers of processes do
    not count: tensors are compared whole, one at a time.
    """
    keys = one.shapes.keys() | other.shapes.keys()
    found = [key for key in keys if not _same_tensor(key, one, other)]
    found += _places("groups", one.groups, other.groups)
    found += _places("common", one.common, other.common)
    return sorted(found)


def _same_tensor(key: str, one: CheckpointReader, other: CheckpointReader) -> bool:
    if key not in one.shapes or key not in other.shapes or one.dtype(key) != other.dtype(key):
        return False
    return one.shapes[key] == other.shapes[key] and _same_bits(one.tensor(key), other.tensor(key))


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Values that are not numbers are unlike themselves.
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _places(place: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = [f"{place}/{key}" for key in one.keys() ^ other.keys()]
        for key in one.keys() & other.keys():
            found += _places(f"{place}/{key}", one[key], other[key])
        return found
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [each for number, pair in pairs for each in _places(f"{place}/{number}", *pair)]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and _same_bits(one, other)
    else:
        alike = type(one) is type(other) and (one == other or (one != one and other != other))
    return [] if alike else [place]
