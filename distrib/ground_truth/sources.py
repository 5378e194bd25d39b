"""From what is named on a command line, files, globs and manifests, to a list of source files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from distrib.errors import InputError
from distrib.ground_truth.records import FormatType

_BINARY_MAGIC = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\x00",
    b"MM\x00*",
    b"ARROW1",
    b"\x1f\x8b",
    b"PK\x03\x04",
)
_EXAMPLE_PATTERN = {"path": "*.png", "xml": "*.xml", "alto": "*.xml", "page": "*.xml", "binary": "*.arrow"}

SourceFormat = FormatType | Literal["binary"]


def expand_sources(
    arguments: Sequence[str | Path],
    manifests: Sequence[Path] = (),
    *,
    format_type: SourceFormat,
) -> list[Path]:
    """The source files that arguments and manifests name, each once, in the order of first mention.

    An argument is a file or a glob (sorted; ``**`` crosses folders); a name that exists as it stands is
    never taken for a glob. A manifest lists one path a line, relative to the working directory or, where
    nothing is there, to the manifest's folder. Files named by a manifest are not required to exist: the
    reader reports each that does not.

    Raises:
        InputError: a folder, a file that does not exist, a glob without match, or a manifest that is
            missing, empty or not a list of paths.
    """
    named = (_expand_argument(str(argument), format_type) for argument in arguments)
    listed = (read_manifest(manifest) for manifest in manifests)
    # Not Path.resolve(): it asks the file system about every folder of every path.
    found = {os.path.abspath(path): path for path in chain.from_iterable(chain(named, listed))}  # noqa: PTH100
    return list(found.values())


def read_manifest(manifest: Path) -> list[Path]:
    """The paths a manifest lists, in its order; blank lines are left out.

    Raises:
        InputError: missing, unreadable, binary, XML, or without a single path.
    """
    content = _manifest_bytes(manifest)
    # File names need not be UTF-8 on Linux, and this error handler is the one that brings any back.
    lines = content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff").split("\n")
    paths = [_resolve(line.removesuffix("\r"), manifest.parent) for line in lines if line.strip()]
    if not paths:
        raise InputError(f"{manifest} lists no files; write one path a line into it.")
    return paths


def _expand_argument(argument: str, format_type: SourceFormat) -> Iterator[Path]:
    path = Path(argument)
    if _exists(path) and path.is_dir():
        pattern = path / _EXAMPLE_PATTERN[format_type]
        raise InputError(f"{argument} is a folder; name the files in it, for example '{pattern}'.")
    if _exists(path):
        yield path
        return
    if not glob.has_magic(argument):
        example = _EXAMPLE_PATTERN[format_type]
        raise InputError(f"{argument} does not exist; check the name, or use a glob such as '{example}'.")
    matches = _glob_files(argument) or _glob_files(argument.replace("[", "[[]"))
    if not matches:
        raise InputError(f"{argument} matches no file; check the pattern and the folder you are in.")
    yield from matches


def _glob_files(pattern: str) -> list[Path]:
    # Not Path.glob: it takes no absolute patterns.
    paths = (Path(name) for name in sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return [path for path in paths if not path.is_dir()]


def _manifest_bytes(manifest: Path) -> bytes:
    try:
        content = manifest.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            f"{manifest} does not exist; name a text file that lists one path a line."
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{manifest} is a folder; name a text file that lists one path a line.") from error
    except OSError as error:
        raise InputError(
            f"{manifest} cannot be read ({error.strerror}); name a text file that lists one path a line."
        ) from error
    if content.startswith(_BINARY_MAGIC) or b"\0" in content[:65536]:
        raise InputError(
            f"{manifest} is no list of paths but a binary file; to use the file itself name it without "
            "-F, -t or -e."
        )
    if content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise InputError(
            f"{manifest} is no list of paths but an XML file; to use the file itself name it without "
            "-F, -t or -e."
        )
    return content


def _resolve(line: str, folder: Path) -> Path:
    """The file a manifest's line names; blanks at its ends count only if such a file exists."""
    stripped = line.strip()
    if line != stripped:
        for candidate in (Path(line), folder / line):
            if _exists(candidate):
                return candidate
    path = Path(stripped)
    # Asking a shared file system about each of a million absolute paths takes minutes and decides nothing.
    if path.is_absolute() or _exists(path):
        return path
    beside_manifest = folder / path
    return beside_manifest if _exists(beside_manifest) else path


def _exists(path: Path) -> bool:
    # A line of a file that is no manifest may be longer than a name can be.
    try:
        return path.exists()
    except OSError:
        return False
