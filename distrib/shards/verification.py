"""Reading everything there is of a data set, to find what is damaged: files, members, images."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from distrib.errors import InputError
from distrib.shards.folder_listing import join
from distrib.shards.index import IndexEntry
from distrib.shards.manifest import MANIFEST_NAME, checksum_of, read_manifest
from distrib.shards.png import UNREADABLE_IMAGE
from distrib.shards.remote import is_remote, shown_address
from distrib.shards.shard_index import index_local
from distrib.shards.storage import ShardStorage, UnreadableLine
from distrib.shards.stored_image import decode_stored

if TYPE_CHECKING:
    from distrib.shards.dataset import Dataset

_LINES_PER_TASK: Final = 1024
_COMPARED: Final = {
    "image_offset": "where its image lies",
    "image_bytes": "the size of its image",
    "image_crc": "the checksum of its image",
    "text": "its text",
    "width": "the width of its image",
    "height": "the height of its image",
}
"""Columns of an index, and what they are called in a sentence about one line."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong with a shard or index (``line`` None), or with a line, counted from 0 in its data set."""

    dataset: str
    shard: str
    reason: str
    line: int | None = None
    source: str | None = None
    line_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyTask:
    """Lines ``first`` to ``last`` - 1 of a data set, all in one shard; with ``whole`` its file as well."""

    dataset: Dataset
    storage: ShardStorage
    shard: int
    first: int
    last: int
    whole: bool


def verify_tasks(dataset: Dataset, storage: ShardStorage) -> Iterator[VerifyTask]:
    """Tasks that together verify a data set, in order. They can be sent to other processes."""
    starts = dataset.index.shard_starts.tolist()
    for shard, reference in enumerate(dataset.shards):
        first, end = starts[shard], starts[shard + 1]
        # A remote shard is downloaded by the one process that verifies it.
        step = max(end - first, 1) if is_remote(reference.address) else _LINES_PER_TASK
        for start in range(first, max(end, first + 1), step):
            yield VerifyTask(
                dataset=dataset,
                storage=storage,
                shard=shard,
                first=start,
                last=min(start + step, end),
                whole=start == first,
            )


def verify_index(dataset: Dataset, storage: ShardStorage) -> list[Damage]:
    """Compare the index of a data set with the checksum that its dataset.json has of it."""
    if any(shard.checksum is None for shard in dataset.shards):
        return []
    index = read_manifest(join(dataset.name, MANIFEST_NAME)).index
    address = join(dataset.name, index.name)
    try:
        if checksum_of(storage.local_path(address)) == index.checksum:
            return []
        reason = "its checksum is not that of dataset.json"
    except (InputError, OSError) as error:
        reason = f"it cannot be read ({error})"
    return [Damage(dataset=_shown(dataset.name), shard=_shown(address), reason=reason)]


def verify(task: VerifyTask) -> list[Damage]:
    """Read what the task names and compare it with checksums and index: what is damaged, shard first."""
    address = task.dataset.shards[task.shard].address
    try:
        path = task.storage.local_path(address)
        with path.open("rb"):
            pass
    except InputError as error:
        return [_of_shard(task, str(error))] if task.whole else []
    except OSError as error:
        return [_of_shard(task, f"it cannot be read ({error.strerror or error})")] if task.whole else []
    damages = list(_file_damages(task, path)) if task.whole else []
    damages.extend(_line_damages(task, path))
    if is_remote(address):
        task.storage.close()
    return damages


def _of_shard(task: VerifyTask, reason: str) -> Damage:
    return Damage(
        dataset=_shown(task.dataset.name),
        shard=_shown(task.dataset.shards[task.shard].address),
        reason=reason,
    )


def _of_line(task: VerifyTask, line: int, entry: IndexEntry, reason: str) -> Damage:
    return replace(_of_shard(task, reason), line=line, source=entry.source, line_id=entry.line_id)


def _file_damages(task: VerifyTask, path: Path) -> Iterator[Damage]:
    """What is wrong with a shard as a file, and lines of which its index says something else than it does."""
    reference = task.dataset.shards[task.shard]
    try:
        size = path.stat().st_size
        if size != reference.bytes:
            yield _of_shard(task, f"it has {size:,} bytes instead of {reference.bytes:,}")
        if reference.checksum is not None and checksum_of(path) != reference.checksum:
            yield _of_shard(task, "its checksum is not that of dataset.json")
    except OSError as error:
        yield _of_shard(task, f"it cannot be read ({error.strerror or error})")
        return
    try:
        found, facts = index_local(path)
    except InputError as error:
        yield _of_shard(task, _named(str(error), path, reference.address))
        return
    for problem in facts.problems:
        yield _of_shard(task, _named(problem, path, reference.address))
    yield from _differences(task, found)


def _differences(task: VerifyTask, found: pa.RecordBatch) -> Iterator[Damage]:
    """Lines that the shard holds otherwise than the index has them."""
    index = task.dataset.index
    first, end = index.shard_starts[task.shard : task.shard + 2].tolist()
    if found.num_rows != end - first:
        yield _of_shard(task, f"it has {found.num_rows:,} whole lines instead of {end - first:,}")
        return
    columns = [found.column(name).to_pylist() for name in _COMPARED]
    for line, theirs in enumerate(zip(*columns, strict=True), start=first):
        entry = index.entry(line)
        ours = (entry.offset, entry.size, entry.crc, entry.text, entry.width, entry.height)
        if theirs != ours:
            pairs = zip(_COMPARED.values(), ours, theirs, strict=True)
            meanings = " and ".join(meaning for meaning, our, their in pairs if our != their)
            yield _of_line(task, line, entry, f"the shard and the index do not agree on {meanings}")


def _line_damages(task: VerifyTask, path: Path) -> Iterator[Damage]:
    """Lines whose image is not what it was, or is none."""
    address = task.dataset.shards[task.shard].address
    for line in range(task.first, task.last):
        entry = task.dataset.index.entry(line)
        if entry.offset < 0:
            yield _of_line(task, line, entry, "its image cannot be read by itself")
            continue
        try:
            content = task.storage.read(str(path), entry.offset, entry.size)
        except UnreadableLine as error:
            yield _of_line(task, line, entry, _named(error.reason, path, address))
            continue
        problem = _image_problem(content, entry)
        if problem is not None:
            yield _of_line(task, line, entry, problem)


def _image_problem(content: bytes, entry: IndexEntry) -> str | None:
    if zlib.crc32(content) != entry.crc:
        return "its image does not match its checksum"
    try:
        size = decode_stored(content).size
    except UNREADABLE_IMAGE as error:
        return f"its image cannot be decoded ({error})"
    if size != (entry.width, entry.height):
        return f"its image is {size[0]}x{size[1]} pixels, not {entry.width}x{entry.height} as in the index"
    return None


def _named(sentence: str, path: Path, address: str) -> str:
    """A sentence about a file under the name that the user gave it."""
    return sentence.replace(str(path), _shown(address))


def _shown(address: str) -> str:
    """An address without the secrets that may stand in it."""
    return shown_address(address) if is_remote(address) else address
