"""The index of one shard file of either kind, and what the file says of all its lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from distrib.ground_truth.records import LineType
from distrib.shards.arrow import open_arrow
from distrib.shards.arrow_index import index_opened
from distrib.shards.arrow_schema import ImageMode
from distrib.shards.tar_index import read_tar

_TAR_MAGIC: Final = b"ustar"
_TAR_MAGIC_AT: Final = 257
_TAR_SUFFIXES: Final = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What a shard file says of all its lines; ``height`` and ``normalized_height`` in pixels, 0 for none."""

    line_type: LineType
    im_mode: ImageMode
    source_mode: ImageMode
    legacy_polygons: bool
    height: int
    normalized_height: int
    alphabet: Mapping[str, int] | None
    problems: tuple[str, ...] = ()


def index_local(path: Path) -> tuple[pa.RecordBatch, ShardFacts]:
    """Index a shard file of either kind by what it begins with. Raises InputError."""
    if _is_tar(path):
        tar = read_tar(path)
        return tar.batch, ShardFacts(
            line_type=tar.facts.line_type,
            im_mode=tar.facts.im_mode,
            source_mode=tar.facts.source_mode,
            legacy_polygons=tar.facts.legacy_polygons,
            height=tar.facts.normalized_height,
            normalized_height=tar.facts.normalized_height,
            alphabet=None,
            problems=tuple(tar.problems),
        )
    shard = open_arrow(path)
    metadata = shard.metadata
    return index_opened(shard), ShardFacts(
        line_type=metadata.line_type,
        im_mode=metadata.im_mode,
        source_mode=metadata.source_mode or metadata.im_mode,
        legacy_polygons=metadata.legacy_polygons,
        height=metadata.height,
        normalized_height=metadata.height if metadata.normalized else 0,
        alphabet=dict(metadata.alphabet),
    )


def _is_tar(path: Path) -> bool:
    # A compressed tar has another beginning, and its reader the sentence for it.
    if path.name.endswith(_TAR_SUFFIXES):
        return True
    try:
        with path.open("rb") as file:
            file.seek(_TAR_MAGIC_AT)
            return file.read(len(_TAR_MAGIC)) == _TAR_MAGIC
    except OSError:
        return False
