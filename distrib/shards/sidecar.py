"""The index of one shard file that comes without a manifest: made once, kept beside it.

Small shards are indexed anew each time. Of a large one the index is kept in ``.<name>.index`` beside it or,
where that cannot be written or the shard is remote, in the cache folder; where neither can be written it is
made each time. It stands for the shard until the shard's size or time of change is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa

from distrib.errors import InputError, KetosError
from distrib.ground_truth.records import LineType
from distrib.shards.arrow_schema import DATASET_TYPES, IMAGE_MODES, MAX_HEIGHT, ImageMode
from distrib.shards.index_file import IndexPart, map_part, write_part
from distrib.shards.remote import RemoteError, is_remote, local_file, remote_call
from distrib.shards.shard_index import ShardFacts, index_local
from distrib.shards.storage import ShardStorage

KEEP_ABOVE: Final = 64 << 20
"""Bytes of a shard whose index is worth keeping: smaller ones are indexed in a fraction of a second."""

_FOLDER: Final = "indexes"
_CHANGES: Final = ("ETag", "etag", "md5Hash", "checksum", "mtime", "LastModified", "updated", "created")
"""Under which names file systems tell when a file changed, or what it holds."""


@dataclass(frozen=True, kw_only=True)
class IndexedShard:
    """A shard file, its size in bytes, its index and what it says of its lines."""

    address: str
    bytes: int
    index: IndexPart
    facts: ShardFacts

    @property
    def lines(self) -> int:
        """Number of lines."""
        return sum(batch.num_rows for batch in self.index.batches)


def index_shard(address: str, storage: ShardStorage) -> IndexedShard:
    """Index a shard file, local or remote, or take the index that was kept of it.

    Raises:
        InputError: it is missing, damaged, or no data set of text lines.
    """
    size, stamp = _stamp(address)
    places = _places(address, storage) if size > KEEP_ABOVE else []
    for place in places:
        kept = _load(place, stamp)
        if kept is not None:
            return IndexedShard(address=address, bytes=size, index=kept[0], facts=kept[1])
    batch, facts = index_local(storage.local_path(address) if is_remote(address) else local_file(address))
    index = IndexPart([batch])
    for place in places:
        if _store(place, batch, facts, stamp):
            index = map_part(place)
            break
    return IndexedShard(address=address, bytes=size, index=index, facts=facts)


def _stamp(address: str) -> tuple[int, str]:
    """Size in bytes, and what changes with the content, of a shard. Raises InputError."""
    if not is_remote(address):
        try:
            status = local_file(address).stat()
        except FileNotFoundError as error:
            raise InputError(f"{address} does not exist; check its name.") from error
        except OSError as error:
            raise InputError(
                f"{address} cannot be read ({error.strerror}); check its permissions."
            ) from error
        return status.st_size, f"{status.st_size} {status.st_mtime_ns}"
    try:
        info = remote_call(address, lambda filesystem, path: filesystem.info(path))
    except RemoteError as error:
        raise InputError(str(error)) from error
    size = info.get("size") or 0
    changes = [str(info[name]) for name in _CHANGES if info.get(name) is not None]
    return size, " ".join([address, str(size), *changes])


def _places(address: str, storage: ShardStorage) -> list[Path]:
    """Where the index of a shard may be kept, the best place first."""
    places = []
    if not is_remote(address):
        path = local_file(address)
        places.append(path.with_name(f".{path.name}.index"))
    if storage.cache is not None:
        identity = address if is_remote(address) else str(local_file(address).absolute())
        name = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        places.append(storage.cache.directory / _FOLDER / f"{name}.index")
    return places


def _load(place: Path, stamp: str) -> tuple[IndexPart, ShardFacts] | None:
    """An index that was kept, if it is sound and still that of the shard."""
    try:
        if not place.is_file():
            return None
        part = map_part(place)
    except (InputError, OSError):
        return None
    facts = _parse(part.facts, stamp)
    return None if facts is None or len(part.batches) != 1 else (part, facts)


def _store(place: Path, batch: pa.RecordBatch, facts: ShardFacts, stamp: str) -> bool:
    try:
        if place.parent.name == _FOLDER:
            place.parent.mkdir(parents=True, exist_ok=True)
        write_part(place, [batch], {"stamp": stamp, **asdict(facts)})
    except (KetosError, OSError):
        return False
    return True


def _parse(raw: Mapping[str, Any], stamp: str) -> ShardFacts | None:
    """The facts of a kept index; None where they are another shard's or damaged."""
    try:
        alphabet, problems = raw["alphabet"], raw["problems"]
        heights = (raw["height"], raw["normalized_height"])
        sound = (
            raw["stamp"] == stamp
            and raw["line_type"] in DATASET_TYPES
            and raw["im_mode"] in IMAGE_MODES
            and raw["source_mode"] in IMAGE_MODES
            and all(type(height) is int and 0 <= height <= MAX_HEIGHT for height in heights)
            and (alphabet is None or all(type(count) is int for count in alphabet.values()))
            and all(isinstance(problem, str) for problem in problems)
        )
        if not sound:
            return None
        return ShardFacts(
            line_type=cast(LineType, raw["line_type"]),
            im_mode=cast(ImageMode, raw["im_mode"]),
            source_mode=cast(ImageMode, raw["source_mode"]),
            legacy_polygons=raw["legacy_polygons"] is True,
            height=heights[0],
            normalized_height=heights[1],
            alphabet=alphabet,
            problems=tuple(problems),
        )
    except (KeyError, TypeError, AttributeError):
        return None
