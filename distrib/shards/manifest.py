"""``dataset.json``: what a data set of shards holds, which files it is made of, and their checksums.

=====================  ================================================================================
key                    content
=====================  ================================================================================
``version``            of this layout, 1
``format``             of the shards: ``arrow`` or ``webdataset``
``line_type``          ``baselines`` or ``bbox``
``im_mode``            ``1``, ``L`` or ``RGB``: the largest mode of the stored images
``source_mode``        likewise of the line images as they were cut, before they were normalised
``legacy_polygons``    whether lines were cut as kraken < 5 did
``height``             pixels of network input for which the index holds columns; 0: it holds none
``normalized``         whether the images are network input of that height already
``lines``              number of lines, ``characters`` likewise
``alphabet``           {character: occurrences} of the raw texts; ``languages`` likewise, in lines
``splits``             lines marked ``train``, ``validation``, ``test`` and by ``none`` of them
``width_histogram``    {``bin``: columns a bin, ``counts``: lines of each bin} of the lines' columns
``shards``             [{``name``, ``lines``, ``bytes``, ``checksum``}] in order
``index``              {``name``, ``bytes``, ``checksum``} of the file with the index of all lines
``sources``            {``count``, ``digest``, ``file``} of the ground truth it was made from
``created_by``         {``program``, ``version``}
=====================  ================================================================================

Files are named without a folder and lie beside it. Checksums are ``blake2b:`` and 32 hexadecimal digits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, cast

from distrib.errors import InputError
from distrib.files import write_error, written_whole
from distrib.ground_truth.records import LineType
from distrib.shards.arrow_schema import IMAGE_MODES, MAX_HEIGHT, ImageMode
from distrib.shards.remote import RemoteError, is_remote, local_file, remote_call, shown_address

MANIFEST_NAME: Final = "dataset.json"
MANIFEST_VERSION: Final = 1
HISTOGRAM_BIN: Final = 64

ShardFormat = Literal["arrow", "webdataset"]

_MAPPINGS: Final = ("alphabet", "languages", "splits", "created_by")
_MAX_BYTES: Final = 256 << 20
_CHECKSUM: Final = re.compile(r"blake2b:[0-9a-f]{32}")
_MAX_COUNT: Final = 1 << 62
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ManifestShard:
    """One shard file."""

    name: str
    lines: int
    bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class ManifestIndex:
    """The file of the index."""

    name: str
    bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class ManifestSources:
    """The ground truth: number of files, digest over all, and the file that lists them ("" for none)."""

    count: int = 0
    digest: str = ""
    file: str = ""


@dataclass(frozen=True, kw_only=True)
class WidthHistogram:
    """Lines by columns: ``counts[i]`` have ``bin * i`` to ``bin * (i + 1) - 1``."""

    bin: int = HISTOGRAM_BIN
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """The content of ``dataset.json``; see the table at the top of this module."""

    format: ShardFormat
    line_type: LineType
    im_mode: ImageMode
    source_mode: ImageMode
    legacy_polygons: bool
    height: int
    normalized: bool
    lines: int
    characters: int
    alphabet: Mapping[str, int]
    shards: tuple[ManifestShard, ...]
    index: ManifestIndex
    languages: Mapping[str, int] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    width_histogram: WidthHistogram = field(default_factory=WidthHistogram)
    sources: ManifestSources = field(default_factory=ManifestSources)
    created_by: Mapping[str, str] = field(default_factory=dict)
    version: int = MANIFEST_VERSION


def checksum_of(path: Path) -> str:
    """The checksum of a file as manifests hold it. Raises OSError."""
    digest = blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"blake2b:{digest.hexdigest()}"


def write_manifest(path: Path, manifest: DatasetManifest) -> None:
    """Write a manifest that appears when it is whole. Raises InputError or RunError where it cannot be."""
    # asdict makes nonsense of a Counter.
    plain: dict[str, Any] = {name: dict(getattr(manifest, name)) for name in _MAPPINGS}
    content = json.dumps(asdict(replace(manifest, **plain)), ensure_ascii=False, indent=1).encode("utf-8")
    try:
        with written_whole(path) as file:
            file.write(content + b"\n")
    except OSError as error:
        raise write_error(path, error) from error


def read_manifest(address: str | Path) -> DatasetManifest:
    """The manifest at a path or fsspec address.

    Raises:
        InputError: it is missing, damaged, of a newer version, or names files outside its folder.
    """
    shown = shown_address(str(address)) if is_remote(str(address)) else str(address)
    content = _content(str(address), shown)
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(f"{shown} is not valid JSON; copy or compile the data set again.") from None
    if not isinstance(raw, dict) or "shards" not in raw:
        raise InputError(f"{shown} describes no data set; name a dataset.json that `ketos compile` wrote.")
    if raw.get("version") != MANIFEST_VERSION:
        raise InputError(
            f"{shown} is of version {raw.get('version')!r} where this program reads {MANIFEST_VERSION}; "
            "update it or compile again."
        )
    try:
        return _parse(raw)
    except _Problem as problem:
        raise InputError(f"{shown} is damaged: {problem}; copy or compile the data set again.") from None


class _Problem(ValueError):
    pass


def _content(address: str, shown: str) -> bytes:
    if is_remote(address):
        try:
            content = remote_call(
                address, lambda filesystem, path: filesystem.cat_file(path, start=0, end=_MAX_BYTES)
            )
        except RemoteError as error:
            raise InputError(str(error)) from error
        return cast(bytes, content)
    try:
        with local_file(address).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{shown} does not exist; check its name.") from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}); check its permissions.") from None
    if len(content) > _MAX_BYTES:
        raise InputError(f"{shown} is too large for a dataset.json; name another file.")
    return content


def _parse(raw: Mapping[str, Any]) -> DatasetManifest:
    manifest = DatasetManifest(
        format=_one_of(raw, "format", ("arrow", "webdataset")),
        line_type=_one_of(raw, "line_type", ("baselines", "bbox")),
        im_mode=_one_of(raw, "im_mode", IMAGE_MODES),
        source_mode=_one_of(raw, "source_mode", IMAGE_MODES),
        legacy_polygons=_flag(raw, "legacy_polygons"),
        height=_count(raw, "height", limit=MAX_HEIGHT),
        normalized=_flag(raw, "normalized"),
        lines=_count(raw, "lines"),
        characters=_count(raw, "characters"),
        alphabet=_counts(raw, "alphabet"),
        languages=_counts(raw, "languages"),
        splits=_counts(raw, "splits"),
        width_histogram=_histogram(_object(raw, "width_histogram")),
        shards=tuple(_shard(item, number) for number, item in enumerate(_list(raw, "shards"))),
        index=_index(_object(raw, "index")),
        sources=_sources(_object(raw, "sources")),
        created_by={key: str(value) for key, value in _object(raw, "created_by").items()},
    )
    if manifest.normalized and not manifest.height:
        raise _Problem("its lines are normalised but their height is not given")
    if not manifest.shards:
        raise _Problem("it names no shard")
    names = [shard.name for shard in manifest.shards]
    if len(set(names)) != len(names):
        raise _Problem("it names a shard twice")
    if sum(shard.lines for shard in manifest.shards) != manifest.lines:
        raise _Problem("the lines of its shards are not as many as those of the whole")
    return manifest


def _shard(item: object, number: int) -> ManifestShard:
    raw = _as_object(item, f"shards[{number}]")
    return ManifestShard(
        name=_file_name(raw, "name"),
        lines=_count(raw, "lines"),
        bytes=_count(raw, "bytes"),
        checksum=_checksum(raw),
    )


def _index(raw: Mapping[str, Any]) -> ManifestIndex:
    return ManifestIndex(name=_file_name(raw, "name"), bytes=_count(raw, "bytes"), checksum=_checksum(raw))


def _sources(raw: Mapping[str, Any]) -> ManifestSources:
    return ManifestSources(
        count=_count(raw, "count") if "count" in raw else 0,
        digest=_text(raw, "digest") if "digest" in raw else "",
        file=_file_name(raw, "file") if raw.get("file") else "",
    )


def _histogram(raw: Mapping[str, Any]) -> WidthHistogram:
    if not raw:
        return WidthHistogram()
    counts = _list(raw, "counts")
    if not all(type(count) is int and 0 <= count < _MAX_COUNT for count in counts):
        raise _Problem("its histogram of widths does not hold counts")
    return WidthHistogram(bin=max(_count(raw, "bin"), 1), counts=tuple(counts))


def _one_of(raw: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    value = raw.get(key)
    if value not in allowed:
        raise _Problem(f"its {key!r} is {value!r} and none of {', '.join(allowed)}")
    return value


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if type(value) is not bool:
        raise _Problem(f"its {key!r} is {value!r} and not true or false")
    return value


def _count(raw: Mapping[str, Any], key: str, limit: int = _MAX_COUNT) -> int:
    value = raw.get(key)
    if type(value) is not int or not 0 <= value <= limit:
        raise _Problem(f"its {key!r} is {value!r} and no number of that kind")
    return value


def _counts(raw: Mapping[str, Any], key: str) -> dict[str, int]:
    value = _object(raw, key)
    if not all(type(count) is int and 0 <= count < _MAX_COUNT for count in value.values()):
        raise _Problem(f"its {key!r} does not hold counts")
    return dict(value)


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str):
        raise _Problem(f"its {key!r} is {value!r} and no text")
    return value


def _file_name(raw: Mapping[str, Any], key: str) -> str:
    """A name that cannot lead out of the manifest's folder."""
    name = _text(raw, key)
    if not name or name in (".", "..") or len(name) > 255 or re.search(r"[/\\\x00-\x1f]|://", name):
        raise _Problem(f"its {key!r} is {name!r} and no plain file name")
    return name


def _checksum(raw: Mapping[str, Any]) -> str:
    value = _text(raw, "checksum")
    if not _CHECKSUM.fullmatch(value):
        raise _Problem(f"{value!r} is no checksum")
    return value


def _list(raw: Mapping[str, Any], key: str) -> list[Any]:
    value = raw.get(key)
    if not isinstance(value, list):
        raise _Problem(f"its {key!r} is no list")
    return value


def _object(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return _as_object(raw.get(key, {}), key)


def _as_object(value: object, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Problem(f"its {key!r} is no JSON object")
    return value
