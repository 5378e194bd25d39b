"""The record of a run's checkpoints: ``checkpoints.jsonl``, a row for each written and each removed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from distrib.runtime.directory import json_lines

RECORD = "checkpoints.jsonl"

Kind = Literal["validation", "interval", "stop", "abort"]
"""Why a checkpoint was written: after a validation, by ``--save-steps`` or ``--save-minutes``, on leaving in
good order, or because of an error."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What a checkpoint is of: global steps done, epoch from 0, and the validation score where it has one."""

    kind: Kind
    step: int
    epoch: int
    score: float | None

    @classmethod
    def parsed(cls, values: Mapping[str, Any]) -> CheckpointFacts | None:
        """Facts as they stand in a row or a checkpoint; None where they are none."""
        kind, step, epoch, score = (values.get(name) for name in ("kind", "step", "epoch", "score"))
        if kind not in get_args(Kind) or not _whole_number(step) or not _whole_number(epoch):
            return None
        known = isinstance(score, (int, float)) and math.isfinite(score)
        return cls(
            kind=cast(Kind, kind),
            step=cast(int, step),
            epoch=cast(int, epoch),
            score=float(cast(float, score)) if known else None,
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """A checkpoint as recorded.

    ``bytes`` of all its files; ``digest`` is the blake2b of the file, or of a folder's ``checkpoint.json``,
    in hexadecimal. ``stall_ms`` is how long training waited, ``seconds`` how long all of the save took,
    ``time`` seconds since 1970.
    """

    name: str
    facts: CheckpointFacts
    bytes: int
    digest: str
    strategy: str
    world_size: int
    stall_ms: float
    seconds: float
    time: float

    def json(self) -> dict[str, Any]:
        """The row as it is written."""
        values = asdict(self)
        facts = values.pop("facts")
        return {"name": values.pop("name"), **facts, **values}


def read_rows(directory: Path) -> dict[str, CheckpointRow]:
    """The rows of checkpoints not removed since, by name, in the order they were written.

    Lines that are no rows, such as one cut short by a crash, are passed over. Empty where there is no record.
    """
    rows: dict[str, CheckpointRow] = {}
    try:
        lines = json_lines.read_rows(directory / RECORD)
    except OSError:
        return rows
    for values in lines:
        removed = values.get("removed")
        if isinstance(removed, str):
            rows.pop(removed, None)
        elif (row := _parsed(values)) is not None:
            rows.pop(row.name, None)  # written again, it stands where it was written last
            rows[row.name] = row
    return rows


def append_row(directory: Path, values: Mapping[str, Any]) -> None:
    """Append one row, on the disk when this returns. Raises OSError, and then nothing has been appended."""
    line = json.dumps(values).encode() + b"\n"
    descriptor = os.open(directory / RECORD, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # a row cut short by a crash stays a line of its own
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, size)
            raise OSError(28, os.strerror(28), str(directory / RECORD))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(values: Mapping[str, Any]) -> CheckpointRow | None:
    name, digest, size = values.get("name"), values.get("digest"), values.get("bytes")
    facts = CheckpointFacts.parsed(values)
    if facts is None or not isinstance(name, str) or not isinstance(digest, str) or not _whole_number(size):
        return None
    # A name leads to a file that is verified and one day removed: it must not lead out of the directory.
    if name != Path(name).name or name.startswith(".") or "\0" in name:
        return None
    return CheckpointRow(
        name=name,
        facts=facts,
        bytes=cast(int, size),
        digest=digest,
        strategy=str(values.get("strategy", "")),
        world_size=int(_number(values.get("world_size"))),
        stall_ms=_number(values.get("stall_ms")),
        seconds=_number(values.get("seconds")),
        time=_number(values.get("time")),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def _whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
