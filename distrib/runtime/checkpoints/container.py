"""One file in torch's zip container, read with every precaution: no code, no copies, no claims believed.

A container of ours holds plain values and dense tensors only, so its pickle needs few instructions and few
names. It is looked through before anything is built from it; then torch maps the tensors into memory.
"""

from __future__ import annotations

import pickletools
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distrib.errors import InputError

FORMAT = 1
"""The version of the layout of a checkpoint's files."""

_LARGEST_DESCRIPTION = 1 << 28
"""Bytes of the pickled part: names, shapes, counters. A hundred times what any network needs."""

_INSTRUCTIONS = frozenset(
    (
        *("PROTO", "STOP", "MARK"),
        *(
            "NONE",
            "NEWTRUE",
            "NEWFALSE",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG1",
            "LONG4",
            "BINFLOAT",
            "BINUNICODE",
        ),
        *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("SETITEM", "SETITEMS", "APPEND", "APPENDS"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "REDUCE", "BINPERSID"),
    )
)
"""What torch.save writes for plain values and tensors: frames, constants, containers, memory, tensors."""

_STORAGES = (
    "Bool",
    "Byte",
    "Char",
    "Short",
    "Int",
    "Long",
    "Half",
    "BFloat16",
    "Float",
    "Double",
    "ComplexFloat",
    "ComplexDouble",
)
_GLOBALS = frozenset(
    {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
    | {f"torch {kind}Storage" for kind in _STORAGES}
)


def read_container(path: Path) -> dict[str, Any]:
    """What a container holds; its tensors are views of the file, mapped privately.

    Raises InputError where it is missing, not a container of ours, or damaged in a way that shows.
    """
    refuse_irregular(path)
    description = _description(path)
    _refuse_code(path, description)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on oddities of a damaged file
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    # torch's unpickler raises whatever it runs into in damaged data, from OSError to IndexError.
    except Exception:
        raise foreign(path) from None
    if not isinstance(content, dict) or content.get("format") is None:
        raise foreign(path)
    if content["format"] != FORMAT:
        raise InputError(
            f"{path}: written in format {content['format']!r}, of which this version knows {FORMAT} only; "
            "update the program."
        )
    return content


def refuse_irregular(path: Path) -> None:
    """Raise InputError for what is not a file that can be read; a pipe, say, would be waited for."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path}: is no file; give a checkpoint.")
        with path.open("rb"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be read ({reason}); check its name and permissions.") from None


def refuse_damaged(path: Path) -> None:
    """Raise InputError where a record of the container does not have the checksum stored with it."""
    try:
        with zipfile.ZipFile(path) as container:
            broken = container.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError):
        raise foreign(path) from None
    if broken is not None:
        raise InputError(f"{path}: damaged ({broken} differs from its checksum); give another checkpoint.")


def foreign(path: Path) -> InputError:
    """The error for a file that is none of ours."""
    return InputError(
        f"{path}: not a checkpoint of this program, or damaged; give another (one of kraken's must be "
        "converted to weights with kraken's own `ketos convert` first)."
    )


def dense(value: object) -> bool:
    """Whether it is a tensor of numbers one after the other, as all of ours are.

    Others could stand for far more elements than the file holds.
    """
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_contiguous()
        and not value.is_conj()
        and not value.is_neg()
    )


def _description(path: Path) -> bytes:
    """The pickled part of a container."""
    try:
        with zipfile.ZipFile(path) as container:
            members = container.infolist()
            names = [member.filename for member in members]
            described = [member for member in members if member.filename.endswith("/data.pkl")]
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or len(set(names)) < len(names) or len(described) != 1:
                raise foreign(path)
            if described[0].file_size > _LARGEST_DESCRIPTION:
                raise foreign(path)
            return container.read(described[0])
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError):
        raise foreign(path) from None


def _refuse_code(path: Path, description: bytes) -> None:
    """Raise InputError where building what is described would take more than plain values and tensors."""
    try:
        for instruction, argument, _ in pickletools.genops(description):
            if instruction.name == "GLOBAL" and argument not in _GLOBALS:
                name = ".".join(str(argument).split(" "))[:100]
                raise InputError(
                    f"{path}: not a checkpoint of this program: it refers to code ({name}), which is not "
                    "executed; give another (one of kraken's must be converted to weights with kraken's own "
                    "`ketos convert` first)."
                )
            if instruction.name not in _INSTRUCTIONS:
                raise foreign(path)
    except (ValueError, IndexError, OverflowError, UnicodeError):
        raise foreign(path) from None
