"""Writing a shard as a tar in the WebDataset convention: ``key.json``, ``key.png``, ``key.txt`` a line.

The same lines give the same bytes: members have no owner of this machine and no time. A sample's members
stand together, sorted by name. ``key.txt`` is the raw text; ``key.json`` holds what else is known of a line.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from distrib.files import AsideFile, write_error
from distrib.ground_truth.records import LineType
from distrib.shards.arrow_schema import line_key, page_key
from distrib.shards.compiling.arrow_writer import PackedLine, storable

BLOCK: Final = 512
_OWNER: Final = "ketos"
_PERMISSIONS: Final = 0o644


class TarWriter:
    """Writes lines to a tar that appears under ``path`` only when it is whole.

    A context manager: leaving the block normally finishes the file, leaving it by any exception discards
    it. ``height`` and ``normalized`` as for ``ArrowWriter``.

    Raises:
        InputError: the path cannot be written.
        RunError: the disk is full or fails.
    """

    def __init__(
        self,
        path: Path,
        *,
        line_type: LineType,
        legacy_polygons: bool = False,
        height: int = 0,
        normalized: bool = False,
    ) -> None:
        self.path = path
        self.size = 0
        self._same_for_all = {
            "line_type": line_type,
            "normalized_height": height if normalized else 0,
            "legacy_polygons": legacy_polygons,
        }

    def __enter__(self) -> TarWriter:
        # Here and not at the top: it brings torch along, which nothing else of compiling needs.
        from webdataset import TarWriter as WebDatasetWriter

        try:
            self._aside = AsideFile(self.path)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._tar = WebDatasetWriter(
            self._aside.file, user=_OWNER, group=_OWNER, mode=_PERMISSIONS, mtime=0, encoder=False
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._aside:
            if error is not None:
                # Left open it would be closed when it is collected, and complain that its file is gone.
                with contextlib.suppress(OSError):
                    self._tar.close()
                return
            try:
                self._tar.close()
                self._aside.commit()
            except OSError as problem:
                raise write_error(self.path, problem) from problem

    def add(self, line: PackedLine, key: str) -> None:
        """Add one line under a ``key`` of the data set's own, without dot and slash. Raises RunError."""
        members = {
            "json": json.dumps(self._facts(line), ensure_ascii=False).encode(),
            "png": line.png,
            "txt": line.text.encode(),
        }
        try:
            self._tar.write({"__key__": key, **members})
        except OSError as error:
            raise write_error(self.path, error) from error
        self.size += sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in members.values())

    def _facts(self, line: PackedLine) -> dict[str, Any]:
        return {
            "source": storable(line.source),
            "line_id": storable(line.line_id),
            "languages": [storable(name) for name in line.languages],
            "split": line.split,
            "base_dir": line.base_dir,
            "width": line.width,
            "height": line.height,
            "columns": line.columns,
            "image_crc": line.image_crc,
            "key": line_key(line.source, line.line_id, line.text),
            "page_key": page_key(line.source),
            "im_mode": line.mode,
            "source_mode": line.source_mode or line.mode,
            **self._same_for_all,
        }
