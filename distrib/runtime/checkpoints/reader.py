"""Reading checkpoints, whatever strategy at whatever world size wrote them; no code of theirs is executed.

A file holds every tensor whole. A folder holds a part of each process: fragments of the flattened tensors,
any of which is found by its tensor's name and its offset. So a process of another strategy, or of another
world size, reads just the elements that it needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from distrib.errors import InputError
from distrib.runtime.checkpoints.container import (
    FORMAT,
    dense,
    foreign,
    read_container,
    refuse_damaged,
    refuse_irregular,
)
from distrib.runtime.checkpoints.digest import file_digest
from distrib.runtime.checkpoints.names import CONTENTS
from distrib.runtime.checkpoints.rows import CheckpointFacts, CheckpointRow, read_rows

COMMON = "common.ckpt"
"""The file of a folder checkpoint that holds what is no tensor."""

_LARGEST_CONTENTS = 1 << 26
_AXES = 64


@dataclass(frozen=True, kw_only=True)
class _Fragment:
    """Elements ``start`` to ``stop`` of a flattened tensor, mapped from a file."""

    start: int
    stop: int
    values: Tensor


class CheckpointReader:
    """An opened checkpoint: a ``StateReader``, with the state that is no tensor.

    ``path`` is the file or folder, ``common`` what the run saved besides tensors, ``facts`` what the
    checkpoint is of, ``world_size`` the number of processes whose parts it has. Tensors stay in the file
    until they are read, and only what is asked for is.
    """

    def __init__(self, path: Path, common: Mapping[str, Any], parts: list[dict[str, Any]]) -> None:
        """Use ``open_checkpoint``: ``common`` holds what is no tensor, ``parts`` the tensors."""
        self.path = path
        self.world_size = len(parts)
        self.common: dict[str, Any] = _of_type(path, common.get("common"), dict)
        self._groups = _groups(path, common.get("groups"))
        self.facts = CheckpointFacts.parsed(_of_type(path, common.get("facts", {}), dict))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._fragments: dict[str, list[_Fragment]] = {}
        for part in parts:
            self._add(part)
        for key, fragments in self._fragments.items():
            fragments.sort(key=lambda fragment: (fragment.start, -fragment.stop))
            self._refuse_gaps(key)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The settings of the optimizer's parameter groups."""
        return self._groups

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor by key."""
        return MappingProxyType(self._shapes)

    def dtype(self, key: str) -> torch.dtype:
        """The type of a tensor's elements. Raises InputError where the checkpoint lacks it."""
        return self._of(key)[0].values.dtype

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements ``start`` to ``stop`` (None: the end) of a tensor flattened row by row, (n,), copied.

        Raises InputError where the checkpoint lacks the tensor, ValueError where it has no such elements.
        """
        fragments = self._of(key)
        size = math.prod(self._shapes[key])
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            raise ValueError(f"{key} has {size} elements, not {start} to {stop}")
        result = torch.empty(stop - start, dtype=fragments[0].values.dtype)
        done = start
        for fragment in fragments:
            if done >= stop:
                break
            if fragment.stop <= done:
                continue
            upto = min(stop, fragment.stop)
            source = fragment.values[done - fragment.start : upto - fragment.start]
            result[done - start : upto - start].copy_(source)
            done = upto
        return result

    def tensor(self, key: str) -> Tensor:
        """A copy of a whole tensor, in its shape. Raises InputError where the checkpoint lacks it."""
        return self.read(key).view(self._shapes[key])

    def _of(self, key: str) -> list[_Fragment]:
        try:
            return self._fragments[key]
        except KeyError:
            raise InputError(f"{self.path}: holds no {key}; it is of another network or optimizer.") from None

    def _add(self, part: Mapping[str, Any]) -> None:
        """Take in the tensors of a file, or the fragments of a process's part."""
        tensors = _of_type(self.path, part.get("tensors"), dict)
        pieces = part.get("pieces")
        for key, values in tensors.items():
            if not isinstance(key, str) or not dense(values):
                raise foreign(self.path)
            if pieces is None:
                shape, start = tuple(values.shape), 0
            else:
                shape, start = self._piece(key, _of_type(self.path, pieces, dict).get(key), values)
            fragments = self._fragments.setdefault(key, [])
            if self._shapes.setdefault(key, shape) != shape or (
                fragments and fragments[0].values.dtype != values.dtype
            ):
                raise InputError(f"{self.path}: its parts disagree about {key}; give another checkpoint.")
            stop = start + values.numel()
            fragments.append(_Fragment(start=start, stop=stop, values=values.view(-1)))

    def _piece(self, key: str, piece: object, values: Tensor) -> tuple[tuple[int, ...], int]:
        """The shape of a tensor and where in it ``values`` begin."""
        if isinstance(piece, (list, tuple)) and len(piece) == 2:
            shape, start = piece
            lengths = list(shape) if isinstance(shape, (list, tuple)) and len(shape) <= _AXES else [-1]
            counted = all(type(number) is int and number >= 0 for number in [*lengths, start])
            if counted and values.dim() == 1 and start + values.numel() <= math.prod(lengths):
                return tuple(lengths), start
        raise InputError(f"{self.path}: says of {key} what cannot be; give another checkpoint.")

    def _refuse_gaps(self, key: str) -> None:
        covered = 0
        for fragment in self._fragments[key]:
            if fragment.start > covered:
                break
            covered = max(covered, fragment.stop)
        size = math.prod(self._shapes[key])
        if covered < size:
            raise InputError(
                f"{self.path}: of the {size} elements of {key} those from {covered} on are in none of its "
                "parts; give another checkpoint."
            )


def open_checkpoint(path: Path, *, verify: bool = True) -> CheckpointReader:
    """Open a checkpoint, a file or a folder.

    ``verify`` reads every byte and compares it with the digest in the record of its directory, else with
    the checksums inside. What has been opened holds every tensor wholly.

    Raises:
        InputError: it is missing, foreign, damaged, or would have code executed.
    """
    row = _row(path) if verify else None
    if path.is_dir():
        return _open_folder(path, row, verify=verify)
    refuse_irregular(path)
    if row is not None:
        _refuse_unlike(path, row.bytes, row.digest)
    content = read_container(path)
    if verify and row is None:
        refuse_damaged(path)
    return CheckpointReader(path, content, [content])


def _row(path: Path) -> CheckpointRow | None:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return read_rows(real.parent).get(real.name)


def _open_folder(path: Path, row: CheckpointRow | None, *, verify: bool) -> CheckpointReader:
    contents = path / CONTENTS
    if row is not None:
        _refuse_unlike(contents, None, row.digest)
    files = _contents(contents)
    for name, (size, digest) in files.items():
        # Of links neither the size nor the place is known.
        if (path / name).is_symlink():
            raise InputError(f"{path / name}: is a link, which no checkpoint holds; copy the whole folder.")
        _refuse_unlike(path / name, size, digest if verify else None)
    parts = [read_container(path / name) for name in files if name != COMMON]
    if not all("pieces" in part for part in parts):
        raise foreign(path)
    return CheckpointReader(path, read_container(path / COMMON), parts)


def _contents(path: Path) -> dict[str, tuple[int, str]]:
    """The files of a folder checkpoint with their bytes and digests: the common one and all parts by rank."""
    refuse_irregular(path)
    try:
        if path.stat().st_size > _LARGEST_CONTENTS:
            raise foreign(path)
        values = json.loads(path.read_bytes())
        if values["format"] != FORMAT:
            raise InputError(
                f"{path}: written in format {values['format']!r}, of which this version knows {FORMAT} only; "
                "update the program."
            )
        files = {
            str(name): (int(each["bytes"]), str(each["digest"])) for name, each in values["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise foreign(path) from None
    world_size = len(files) - 1
    names = [COMMON, *(part_name(rank, world_size) for rank in range(world_size))]
    if world_size < 1 or set(files) != set(names):
        raise InputError(f"{path}: does not name the parts of a checkpoint; give another checkpoint.")
    return {name: files[name] for name in names}


def part_name(rank: int, world_size: int) -> str:
    """The file of a process's part in a folder checkpoint."""
    return f"part_{rank}_of_{world_size}.ckpt"


def _refuse_unlike(path: Path, size: int | None, digest: str | None) -> None:
    """Raise InputError where a file has not the bytes (number, digest) that were written."""
    refuse_irregular(path)
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            raise InputError(f"{path}: has {found} bytes of the {size} written; give another checkpoint.")
        if digest is not None and file_digest(path) != digest:
            raise InputError(f"{path}: damaged, it is not what was written; give another checkpoint.")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give another checkpoint.") from None


def _of_type(path: Path, value: object, kind: type) -> Any:
    if not isinstance(value, kind):
        raise foreign(path)
    return value


def _groups(path: Path, value: object) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = _of_type(path, value, list)
    for group in groups:
        _of_type(path, group, dict)
    return groups
