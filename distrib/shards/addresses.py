"""From what a command line names as data sets to one address each."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from braceexpand import braceexpand

from distrib.errors import InputError
from distrib.ground_truth.sources import read_manifest
from distrib.shards.remote import RemoteError, is_remote, local_file, remote_call, shown_address

MAX_NAMES: Final = 1_000_000
"""A brace pattern may stand for so many names; more is a slip of the keyboard that would fill the memory."""

_LOCAL: Final = re.compile(r"(file|local)://")
_RANGE: Final = re.compile(r"(-?\d+|[a-zA-Z])\.\.(-?\d+|[a-zA-Z])(?:\.\.(-?\d+))?")


def expand_datasets(arguments: Sequence[str], manifests: Sequence[Path] = ()) -> list[str]:
    """The addresses of the data sets that arguments and lists name, each once, in order of first mention.

    An argument is a data set file (``.arrow``, ``.tar``), a folder of them, a ``dataset.json``, a glob
    (sorted), or a brace range such as ``shards/{0000..0127}.tar``: local or behind any fsspec address
    (``s3://…``). A name that exists as it stands is never taken for a pattern. A list has one argument a
    line, relative to the working directory or, where nothing is there, to its own folder.

    Raises:
        InputError: something does not exist, a pattern matches nothing or too much, or a list is none.
    """
    named = (_expand(argument) for argument in arguments)
    listed = (_expand(line) for manifest in manifests for line in _listed(manifest))
    found: dict[str, str] = {}
    for address in chain.from_iterable(chain(named, listed)):
        # Not Path.resolve(): it asks the file system about every folder of every path.
        key = address if is_remote(address) else os.path.abspath(address)  # noqa: PTH100
        found.setdefault(key, address)
    return list(found.values())


def brace_count(pattern: str) -> int:
    """An upper bound of how many names a brace pattern stands for, found without making them."""
    count, _ = _count_names(pattern, 0, nested=False)
    return count


def _listed(manifest: Path) -> Iterator[str]:
    """The arguments in a list; what is local relative to it where it is not to the working directory."""
    paths = read_manifest(manifest)
    content = manifest.read_bytes().decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    lines = [line.strip() for line in content.split("\n") if line.strip()]
    for line, path in zip(lines, paths, strict=True):
        if "://" in line:
            yield line
        elif path.exists() or Path(line).is_absolute():
            yield str(path)
        else:
            yield line if _stands_for_files(line) else str(manifest.parent / line)


def _stands_for_files(pattern: str) -> bool:
    """Whether any name or pattern leads to something from the working directory."""
    try:
        return any(True for _ in _expand(pattern))
    except InputError:
        return False


def _expand(argument: str) -> Iterator[str]:
    if is_remote(argument):
        yield from _expand_remote(argument)
        return
    name = str(local_file(argument)) if _LOCAL.match(argument) else argument
    if _exists(name):
        yield name
        return
    names = _expand_braces(name)
    if names == [name] and not glob.has_magic(name):
        raise InputError(
            f"{argument} does not exist; name a data set file (.arrow or .tar), a folder of them, or a "
            "pattern such as 'shards/*.tar'."
        )
    for each in names:
        if _exists(each):
            yield each
        elif glob.has_magic(each):
            yield from _glob(each, argument)
        else:
            raise InputError(
                f"{each} does not exist, which {argument} names; correct the range or copy the file."
            )


def _glob(pattern: str, argument: str) -> list[str]:
    # Not Path.glob: it takes no absolute patterns.
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not matches:
        raise InputError(f"{argument} matches no file; check the pattern and the folder you are in.")
    return matches


def _expand_remote(argument: str) -> Iterator[str]:
    """Names behind an address; only patterns are looked up, as asking costs a request a name."""
    protocol, _, path = argument.partition("://")
    for each in _expand_braces(path):
        address = f"{protocol}://{each}"
        if not glob.has_magic(each):
            yield address
            continue
        try:
            # A `?` or `[` may also belong to the name as it stands.
            if remote_call(address, lambda filesystem, name: filesystem.exists(name)):
                yield address
                continue
            matches = remote_call(
                address,
                lambda filesystem, name: [
                    filesystem.unstrip_protocol(match) for match in filesystem.glob(name)
                ],
            )
        except RemoteError as error:
            raise InputError(str(error)) from error
        if not matches:
            raise InputError(f"{shown_address(argument)} matches nothing; check the pattern.")
        yield from sorted(matches)


def _expand_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        count = brace_count(pattern)
        if count <= MAX_NAMES:
            return list(braceexpand(pattern))
    except (ValueError, RecursionError):
        raise InputError(f"{pattern[:200]} has braces that are no range or list; correct them.") from None
    raise InputError(f"{pattern} stands for {count:,} names, more than {MAX_NAMES:,}; correct its ranges.")


def _count_names(pattern: str, position: int, *, nested: bool) -> tuple[int, int]:
    """(number of names, position after it) of a pattern, or within braces of all their alternatives."""
    total, here, begin = 0, 1, position
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
        elif character == "{":
            inside, position = _count_names(pattern, position + 1, nested=True)
            here *= max(inside, 1)
            continue
        elif nested and character == ",":
            total, here = total + here, 1
        elif nested and character == "}":
            values = _RANGE.fullmatch(pattern[begin:position])
            return (_range_size(*values.groups()) if values else total + here), position + 1
        position += 1
    return total + here, position


def _range_size(first: str, last: str, step: str | None) -> int:
    numbers = [int(end) if end.lstrip("-").isdigit() else ord(end) for end in (first, last)]
    return abs(numbers[1] - numbers[0]) // max(abs(int(step or 1)), 1) + 1


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # longer than a name can be, or with a NUL
        return False
