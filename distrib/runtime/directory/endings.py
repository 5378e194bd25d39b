"""Why each process of an attempt has ended: a small file of each, for the launcher that started them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from distrib.files import written_whole

ATTEMPT_VARIABLE: Final = "KETOS_ATTEMPT"
"""Names the folder of the attempt in the environment of its processes."""

EndingCause = Literal["input", "busy", "run", "memory", "peer", "timeout", "unexpected", "preempted"]
"""Bad input; another process has the run directory; a failure that would come again; out of memory; another
process has gone; waited too long; an error nobody has foreseen; a signal after which the state was saved."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a process ended that could still say so; ``sentence`` is what it printed."""

    rank: int
    host: str
    pid: int
    exit_code: int
    cause: EndingCause
    sentence: str


def write_ending(folder: Path, ending: Ending) -> None:
    """Leave ``rank-<r>.json`` in the attempt's folder. What cannot be written is left out: it ends anyway."""
    with suppress(OSError), written_whole(folder / f"rank-{ending.rank}.json") as file:
        file.write(json.dumps(asdict(ending)).encode())


def read_endings(folder: Path) -> dict[int, Ending]:
    """The endings in an attempt's folder, by rank; files that are no endings are passed over."""
    found = {}
    for path in sorted(folder.glob("rank-*.json")):
        with suppress(OSError, ValueError, RecursionError):
            ending = _parsed(json.loads(path.read_bytes()))
            if ending is not None:
                found[ending.rank] = ending
    return found


def _parsed(values: Any) -> Ending | None:
    if not isinstance(values, Mapping) or values.get("cause") not in get_args(EndingCause):
        return None
    numbers = [values.get(name) for name in ("rank", "pid", "exit_code")]
    if not all(isinstance(number, int) for number in numbers):
        return None
    rank, pid, exit_code = cast("list[int]", numbers)
    return Ending(
        rank=rank,
        host=str(values.get("host", "")),
        pid=pid,
        exit_code=exit_code,
        cause=values["cause"],
        sentence=str(values.get("sentence", "")),
    )
