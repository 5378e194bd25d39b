"""What has happened in a run and when: ``events.jsonl``, for people and launchers to read."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from distrib.runtime.directory.json_lines import JsonLines, read_rows
from distrib.runtime.directory.machine import process_age

EVENTS: Final = "events.jsonl"


class EventLog:
    """Adds events to a file, one JSON object a line, each on the disk when ``append`` returns.

    An event that cannot be written is kept and written with the next one: it never ends a run.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)
        self._started = time.monotonic() - process_age()

    def append(self, event: str, /, **facts: Any) -> None:
        """Add ``{"time": ISO 8601 with zone, "elapsed": seconds since this process started, "event", …}``.

        Those three cannot be overwritten by ``facts``.
        """
        stamp = {
            "time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "elapsed": round(time.monotonic() - self._started, 3),
            "event": event,
        }
        self._lines.append({**stamp, **{key: fact for key, fact in facts.items() if key not in stamp}})

    def flush(self) -> bool:
        """Write what could not be written before; whether nothing is left."""
        return self._lines.flush()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file in their order; lines that are torn or no events are left out. Raises OSError."""
    return [row for row in read_rows(path) if isinstance(row.get("event"), str)]
