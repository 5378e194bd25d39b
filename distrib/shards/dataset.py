"""Opening a data set: one shard file, a folder of them, or one with a ``dataset.json``, wherever it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final

import pyarrow as pa

from distrib.errors import InputError
from distrib.ground_truth.records import LineType
from distrib.shards.arrow_schema import ImageMode, largest_mode
from distrib.shards.folder_listing import file_sizes, is_folder, join, parent
from distrib.shards.index import DatasetIndex, open_index
from distrib.shards.index_file import INDEX_SCHEMA, IndexPart
from distrib.shards.manifest import MANIFEST_NAME, DatasetManifest, ManifestShard, read_manifest
from distrib.shards.remote import is_remote, shown_address
from distrib.shards.shard_index import index_local
from distrib.shards.sidecar import IndexedShard, index_shard
from distrib.shards.storage import ShardStorage

_SUFFIXES: Final = (".arrow", ".tar")
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One shard file of a data set; ``checksum`` as in manifests, None where none is recorded."""

    address: str
    bytes: int
    lines: int
    checksum: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set as a whole; its lines are in ``index``, its images in ``shards``.

    ``alphabet`` counts the characters of the raw texts (None: not recorded). ``im_mode`` is the largest
    mode of the stored images and ``source_mode`` that of the images before they were normalised.
    ``normalized_height`` is the height in pixels of lines stored as network input, 0 where they are raw;
    ``height`` that for which the index holds columns, 0 for none. ``fingerprint`` is equal for equal lines
    in equal order, wherever they lie. ``problems`` are sentences about what cannot be used.
    """

    name: str
    line_type: LineType
    alphabet: Mapping[str, int] | None
    im_mode: ImageMode
    source_mode: ImageMode
    legacy_polygons: bool
    normalized_height: int
    height: int
    shards: tuple[ShardRef, ...]
    index: DatasetIndex
    fingerprint: str
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.index)


def open_dataset(address: str | Path, storage: ShardStorage) -> Dataset:
    """Open a shard file (``.arrow``, ``.tar``), a folder of shards, or a ``dataset.json``.

    A folder without ``dataset.json`` is all its ``.arrow`` or all its ``.tar`` files in order of their
    names. What is missing or damaged in part stands in ``problems``; its lines fail one by one.

    Raises:
        InputError: there is no data set, it has no lines, or its files do not belong together.
    """
    address = str(address)
    if address.endswith(".json"):
        dataset = _open_manifest(address, storage)
    elif not address.endswith(_SUFFIXES) and is_folder(address):
        sizes = file_sizes(address)
        if MANIFEST_NAME in sizes:
            dataset = _open_manifest(join(address, MANIFEST_NAME), storage)
        else:
            dataset = _open_files(address, _shard_names(address, sizes), storage)
    else:
        dataset = _from_files(address, [index_shard(address, storage)])
    if not len(dataset):
        reason = f": {dataset.problems[0]}" if dataset.problems else "; compile it again from ground truth."
        raise InputError(f"{_shown(address)} has no lines{reason}")
    return dataset


def _open_files(folder: str, names: Sequence[str], storage: ShardStorage) -> Dataset:
    return _from_files(folder, [index_shard(join(folder, name), storage) for name in names])


def _from_files(name: str, files: Sequence[IndexedShard]) -> Dataset:
    """A data set of shard files that have no manifest."""
    first = files[0].facts
    _require_agreement(files)
    alphabets = [file.facts.alphabet for file in files]
    index = DatasetIndex([file.index for file in files])
    return Dataset(
        name=name,
        line_type=first.line_type,
        alphabet=_sum([alphabet for alphabet in alphabets if alphabet is not None])
        if None not in alphabets
        else None,
        im_mode=largest_mode({file.facts.im_mode for file in files}),
        source_mode=largest_mode({file.facts.source_mode for file in files}),
        legacy_polygons=any(file.facts.legacy_polygons for file in files),
        normalized_height=first.normalized_height,
        height=first.height,
        shards=tuple(ShardRef(file.address, file.bytes, file.lines) for file in files),
        index=index,
        fingerprint=_fingerprint(first.line_type, first.normalized_height, index),
        problems=[problem for file in files for problem in file.facts.problems],
    )


def _sum(alphabets: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for alphabet in alphabets:
        total.update(alphabet)
    return total


def _shard_names(folder: str, sizes: Mapping[str, int]) -> list[str]:
    """The shards in a folder without manifest, sorted. Raises InputError for none, or for two kinds."""
    found = {
        suffix: sorted(name for name in sizes if name.endswith(suffix) and not name.startswith("."))
        for suffix in _SUFFIXES
    }
    kinds = [suffix for suffix in _SUFFIXES if found[suffix]]
    if not kinds:
        raise InputError(
            f"{_shown(folder)} is a folder without data set: it has no {MANIFEST_NAME} and no .arrow or .tar "
            "file; name another."
        )
    if len(kinds) > 1:
        raise InputError(
            f"{_shown(folder)} has both .arrow and .tar files; name those you mean, for example "
            f"'{_shown(folder).rstrip('/')}/*.tar'."
        )
    return found[kinds[0]]


def _require_agreement(files: Sequence[IndexedShard]) -> None:
    first = files[0]
    for other in files[1:]:
        if other.facts.line_type != first.facts.line_type:
            raise InputError(
                f"{_shown(other.address)} holds {other.facts.line_type} lines but {_shown(first.address)} "
                f"holds {first.facts.line_type} lines; put them into two folders."
            )
        if (other.facts.normalized_height, other.facts.height) != (
            first.facts.normalized_height,
            first.facts.height,
        ):
            raise InputError(
                f"{_shown(other.address)} holds {_kind(other)} but {_shown(first.address)} holds "
                f"{_kind(first)}; put them into two folders, or name the files one by one."
            )


def _kind(file: IndexedShard) -> str:
    height, normalized = file.facts.height, file.facts.normalized_height
    if normalized:
        return f"lines normalised to {normalized} pixels"
    return f"raw lines measured for {height} pixels" if height else "raw lines"


def _fingerprint(line_type: LineType, normalized_height: int, index: DatasetIndex) -> str:
    digest = blake2b(f"{line_type} {normalized_height} {len(index)}".encode(), digest_size=16)
    for name in ("image_crc", "key"):
        digest.update(index.column(name).tobytes())
    return digest.hexdigest()


def _open_manifest(address: str, storage: ShardStorage) -> Dataset:
    manifest = read_manifest(address)
    folder = parent(address)
    sizes = file_sizes(folder)
    problems = _shard_problems(folder, manifest, sizes)
    index = _manifest_index(folder, manifest, sizes, storage, problems)
    return Dataset(
        name=folder,
        line_type=manifest.line_type,
        alphabet=manifest.alphabet,
        im_mode=manifest.im_mode,
        source_mode=manifest.source_mode,
        legacy_polygons=manifest.legacy_polygons,
        normalized_height=manifest.height if manifest.normalized else 0,
        height=manifest.height,
        shards=tuple(
            ShardRef(join(folder, shard.name), shard.bytes, shard.lines, shard.checksum)
            for shard in manifest.shards
        ),
        index=index,
        fingerprint=_manifest_fingerprint(manifest),
        problems=problems,
    )


def _shard_problems(folder: str, manifest: DatasetManifest, sizes: Mapping[str, int]) -> list[str]:
    """Sentences about shards that are missing or of another size. Raises InputError where all are missing."""
    missing = [shard for shard in manifest.shards if shard.name not in sizes]
    if len(missing) == len(manifest.shards):
        raise InputError(
            f"{_shown(folder)} has a {MANIFEST_NAME} but none of its {len(missing)} shards; copy them too."
        )
    # Some file systems list names without sizes.
    changed = [
        shard for shard in manifest.shards if sizes.get(shard.name, shard.bytes) not in (shard.bytes, -1)
    ]
    problems = []
    if missing:
        lines = sum(shard.lines for shard in missing)
        problems.append(
            f"{_shown(folder)} lacks {_enumerate(missing)} of its {len(manifest.shards)} shards; their "
            f"{lines:,} lines cannot be read; copy the data set again."
        )
    if changed:
        problems.append(
            f"{_shown(folder)}: {_enumerate(changed)} of its {len(manifest.shards)} shards have another size "
            "than recorded; lines there may be unreadable; copy the data set again."
        )
    return problems


def _enumerate(shards: Sequence[ManifestShard]) -> str:
    names = ", ".join(shard.name for shard in shards[:_NAMED])
    return f"{names} and {len(shards) - _NAMED} more" if len(shards) > _NAMED else names


def _manifest_index(
    folder: str,
    manifest: DatasetManifest,
    sizes: Mapping[str, int],
    storage: ShardStorage,
    problems: list[str],
) -> DatasetIndex:
    """The index that the manifest names or, where that is missing or damaged, one made of the shards."""
    try:
        if sizes.get(manifest.index.name, -1) not in (manifest.index.bytes, -1):
            raise InputError(f"{manifest.index.name} is of another size than recorded")
        index = open_index(storage.local_path(join(folder, manifest.index.name)))
        if index.shard_sizes.tolist() != [shard.lines for shard in manifest.shards]:
            raise InputError(f"{manifest.index.name} is another data set's")
        return index
    except InputError:
        problems.append(
            f"{_shown(folder)}: {manifest.index.name} is missing or damaged and was made again from the "
            "shards for this run; copy or compile the data set again."
        )
    return _rebuilt_index(folder, manifest, sizes, storage, problems)


def _rebuilt_index(
    folder: str,
    manifest: DatasetManifest,
    sizes: Mapping[str, int],
    storage: ShardStorage,
    problems: list[str],
) -> DatasetIndex:
    parts = []
    for shard in manifest.shards:
        batch = pa.RecordBatch.from_pylist([], schema=INDEX_SCHEMA)
        if shard.name in sizes:
            try:
                batch, facts = index_local(storage.local_path(join(folder, shard.name)))
                problems.extend(facts.problems)
            except InputError as error:
                problems.append(str(error))
        parts.append(IndexPart([batch]))
    return DatasetIndex(parts)


def _manifest_fingerprint(manifest: DatasetManifest) -> str:
    kind = f"{manifest.line_type} {manifest.normalized} {manifest.height}"
    digest = blake2b(kind.encode(), digest_size=16)
    for shard in manifest.shards:
        digest.update(f"\n{shard.lines} {shard.checksum}".encode())
    return digest.hexdigest()


def _shown(address: str) -> str:
    return shown_address(address) if is_remote(address) else address
