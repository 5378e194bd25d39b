"""From what was written aside to a checkpoint on record: the part of saving that rank zero alone does."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from distrib.errors import InputError, RunError
from distrib.files import sync_folder
from distrib.runtime.checkpoints.container import FORMAT
from distrib.runtime.checkpoints.digest import file_digest
from distrib.runtime.checkpoints.files import (
    last_name,
    point_last,
    publish,
    remove,
    remove_leftovers,
)
from distrib.runtime.checkpoints.names import ABORT, CONTENTS, LAST, is_run_name
from distrib.runtime.checkpoints.reader import COMMON, open_checkpoint, part_name
from distrib.runtime.checkpoints.record import newest_first, to_remove
from distrib.runtime.checkpoints.rows import CheckpointFacts, CheckpointRow, append_row, read_rows
from distrib.runtime.checkpoints.writing import Written, write_bytes, write_container
from distrib.runtime.state import Piece


@dataclass(frozen=True, kw_only=True)
class Order:
    """A checkpoint to be written ``aside`` and then given its name.

    ``began`` is a reading of ``time.perf_counter``, ``stall`` the seconds that training waited; None where
    it waits until all is done.
    """

    name: str
    aside: Path
    facts: CheckpointFacts
    began: float
    stall: float | None


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that has its name: its row, those removed since for it, and what went wrong after."""

    row: CheckpointRow
    removed: list[str]
    problems: list[str]


def write_file(
    aside: Path, content: Mapping[str, Any], values: Mapping[str, Tensor], pieces: Mapping[str, Piece]
) -> Written:
    """Write a file checkpoint of whole tensors aside. Raises OSError, or RunError for a disk that errs."""
    partial = [key for key, piece in pieces.items() if not piece.whole]
    if partial:
        raise ValueError(f"a part of {partial[0]} is no file checkpoint")
    tensors = {key: values[key].view(pieces[key].shape) for key in pieces}
    return write_container(aside, {**content, "tensors": tensors})


def write_part(
    aside: Path,
    content: Mapping[str, Any],
    values: Mapping[str, Tensor],
    pieces: Mapping[str, Piece],
    rank: int,
    world_size: int,
) -> None:
    """Write a process's part of a folder checkpoint aside and its digest. Raises as ``write_file``."""
    aside.mkdir(exist_ok=True)
    name = part_name(rank, world_size)
    places = {key: [list(piece.shape), piece.start] for key, piece in pieces.items()}
    try:
        _write_with_digest(aside / name, {"tensors": dict(values), "pieces": places})
        if rank == 0:
            _write_with_digest(aside / COMMON, content)
    except BaseException:
        # Room for the next; the folder is rank zero's to remove.
        remove(aside / name)
        raise


class CheckpointKeeper:
    """Gives checkpoints their names, keeps their record and removes those that need not be kept."""

    def __init__(
        self,
        directory: Path,
        *,
        keep_best: int,
        keep_last: int,
        strategy: str,
        world_size: int,
        guard: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._keep_best, self._keep_last = keep_best, keep_last
        self._strategy, self._world_size = strategy, world_size
        self._guard = guard
        self._rows: dict[str, CheckpointRow] = {}
        self._owed: list[dict[str, Any]] = []

    def begin(self) -> str:
        """Set right what a run that was killed left, read the record, and return a token for names aside."""
        remove_leftovers(self._directory)
        self._rows = read_rows(self._directory)
        with suppress(OSError):  # a full disk is for the first save to complain of
            for name in [name for name in self._rows if not (self._directory / name).exists()]:
                self._append({"removed": name, "time": time.time()})
                del self._rows[name]
        self._record_newest()
        self._mend_last()
        return secrets.token_hex(4)

    def commit(self, order: Order, written: Written) -> Saved:
        """Name and record what was written aside. Raises OSError, or what the guard raises."""
        name = order.name
        path = self._directory / name
        self._guard()
        if name in self._rows:
            # Its row must not speak of the one that comes.
            self._append({"removed": name, "time": time.time()})
            del self._rows[name]
        publish(order.aside, path)
        seconds = time.perf_counter() - order.began
        row = CheckpointRow(
            name=name,
            facts=order.facts,
            bytes=written.bytes,
            digest=written.digest,
            strategy=self._strategy,
            world_size=self._world_size,
            stall_ms=round(1000 * (seconds if order.stall is None else order.stall), 1),
            seconds=round(seconds, 3),
            time=time.time(),
        )
        self._rows[name] = row
        self._append(row.json())
        if name == ABORT:
            return Saved(row=row, removed=[], problems=[])
        problems = []
        try:
            point_last(path)
        except OSError as error:
            problems.append(f"last.ckpt still stands for an older checkpoint ({error.strerror})")
        return Saved(row=row, removed=self._prune(), problems=problems)

    def commit_folder(self, order: Order) -> Saved:
        """Name and record the folder whose parts all processes have written. Raises as ``commit`` does."""
        aside = order.aside
        names = [COMMON, *(part_name(rank, self._world_size) for rank in range(self._world_size))]
        files = {each: _digest_beside(aside / each) for each in names}
        contents = json.dumps({"format": FORMAT, "files": files}, indent=1).encode()
        written = write_bytes(aside / CONTENTS, contents)
        for each in names:
            _beside(aside / each).unlink()
        sync_folder(aside)
        total = written.bytes + sum(int(each["bytes"]) for each in files.values())
        whole = Written(bytes=total, digest=written.digest)
        return self.commit(order, whole)

    def _append(self, row: dict[str, Any]) -> None:
        """Append a row, after those that a full disk did not take."""
        self._owed.append(row)
        while self._owed:
            append_row(self._directory, self._owed[0])
            del self._owed[0]

    def _prune(self) -> list[str]:
        present = [row for row in self._rows.values() if (self._directory / row.name).exists()]
        last = last_name(self._directory)
        removed = []
        for name in to_remove(
            present,
            keep_best=self._keep_best,
            keep_last=self._keep_last,
            protected=() if last is None else (last,),
        ):
            try:
                remove(self._directory / name)
                self._append({"removed": name, "time": time.time()})
            except OSError:
                continue  # a checkpoint too many does no harm; the next save tries again
            del self._rows[name]
            removed.append(name)
        return removed

    def _mend_last(self) -> None:
        """Let ``last.ckpt`` stand for the newest where a run was killed before it did."""
        regular = [name for name in self._rows if name != ABORT]
        newest = self._directory / regular[-1] if regular else None
        if newest is None or not newest.exists():
            return
        with suppress(OSError):
            last = newest.with_name(LAST)
            if not last.exists() or not last.samefile(newest):
                point_last(newest)

    def _record_newest(self) -> None:
        """Record a checkpoint that had its name when its run was killed, but not yet its row."""
        found = newest_first(self._directory)
        if not found or found[0].facts is not None or not is_run_name(found[0].path.name):
            return
        path = found[0].path
        try:
            reader = open_checkpoint(path)
            if reader.facts is None:
                return
            measured = path / CONTENTS if path.is_dir() else path
            size = (
                sum(each.stat().st_size for each in path.iterdir()) if path.is_dir() else path.stat().st_size
            )
            row = CheckpointRow(
                name=path.name,
                facts=reader.facts,
                bytes=size,
                digest=file_digest(measured),
                strategy=self._strategy,
                world_size=reader.world_size,
                stall_ms=0.0,
                seconds=0.0,
                time=time.time(),
            )
            self._append(row.json())
        except (InputError, OSError):
            return  # broken, or to be recorded another time: it is found by its time of change
        self._rows[row.name] = row


def _write_with_digest(path: Path, content: Mapping[str, Any]) -> None:
    written = write_container(path, content)
    values = {"bytes": written.bytes, "digest": written.digest}
    write_bytes(_beside(path), json.dumps(values).encode())


def _beside(path: Path) -> Path:
    """Where the digest of a part stands until the table of contents holds it."""
    return path.with_suffix(".json")


def _digest_beside(path: Path) -> dict[str, Any]:
    """The bytes and digest of a part. Raises OSError, or RunError where the file on this disk is another."""
    values: dict[str, Any] = json.loads(_beside(path).read_bytes())
    if path.stat().st_size != values["bytes"]:
        raise RunError(
            f"{path}: not the file that another process wrote; put the run on a disk that all share."
        )
    return values
