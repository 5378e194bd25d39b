"""The file that names every source and line left out: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from distrib.files import AsideFile, check_output, write_error
from distrib.ground_truth.records import Skip


class SkipReport:
    """Writes ``{"source", "line", "reason", "detail"}`` objects to a file that appears on ``commit``.

    ``line`` is null where a whole source was left out. Without a path nothing is written.

    Raises:
        InputError: the path cannot be written.
        RunError: the disk is full or fails.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: AsideFile | None = None
        self._stack = ExitStack()
        if path is not None:
            check_output(path, option="--report", replaces=b"{")

    def __enter__(self) -> SkipReport:
        if self._path is not None:
            try:
                self._file = self._stack.enter_context(AsideFile(self._path))
            except OSError as error:
                raise write_error(self._path, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, skips: Iterable[Skip]) -> None:
        """Write one object for each skip."""
        if self._file is None:
            return
        try:
            self._file.file.writelines(_to_json(skip) for skip in skips)
        except OSError as error:
            raise write_error(self._file.path, error) from error

    def commit(self) -> None:
        """Finish the file."""
        if self._file is None:
            return
        try:
            self._file.commit()
        except OSError as error:
            raise write_error(self._file.path, error) from error


def _to_json(skip: Skip) -> bytes:
    record = {
        "source": str(skip.source),
        "line": skip.line_id,
        "reason": skip.reason.value,
        "detail": skip.detail,
    }
    # Bytes of a file name that are not UTF-8 are lone surrogates here; replaced they are valid JSON escapes.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
