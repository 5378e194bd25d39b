"""A run directory as the kill drill sees it from outside: what is being saved, and what has happened."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

_ASIDE = re.compile(r"\.(.+\.ckpt)\.[0-9a-f]+\.part")


class Watch:
    """Looks at the run directory of one job, which may come into being only now."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._began = time.time()
        self._read = self._size()
        self._named = self._unrecorded()
        self.events: dict[str, dict[str, Any]] = {}
        """The last event of each kind, in this job."""

    def saves(self) -> list[str]:
        """Names aside of the checkpoints that are being written, without `last.ckpt`."""
        return [name for name, what in self._asides() if what != "last.ckpt"]

    def save_phase(self) -> str:
        """How far a save has come that is under way, between its first byte and `last.ckpt`; else empty."""
        if self._asides():
            return "written aside"
        if self._unrecorded() - self._named:
            return "named, not recorded"
        return "recorded, not last" if self._last_is_behind() else ""

    def look(self) -> None:
        """Take note of new events."""
        size = self._size()
        if size <= self._read:
            return
        with (self.directory / "events.jsonl").open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # torn by a kill or a full disk
            self.events[event["event"]] = event

    def _size(self) -> int:
        try:
            return (self.directory / "events.jsonl").stat().st_size
        except OSError:
            return 0

    def _asides(self) -> list[tuple[str, str]]:
        return [(name, found[1]) for name in self._names() if (found := _ASIDE.fullmatch(name))]

    def _names(self) -> list[str]:
        try:
            return [entry.name for entry in os.scandir(self.directory)]
        except OSError:
            return []

    def _unrecorded(self) -> set[str]:
        from distrib.runtime.checkpoints.rows import read_rows

        names = {name for name in self._names() if name.endswith(".ckpt") and name != "last.ckpt"}
        return names - read_rows(self.directory).keys()

    def _last_is_behind(self) -> bool:
        """Whether the checkpoint that was recorded last, by this job, is not yet `last.ckpt`."""
        from distrib.runtime.checkpoints.rows import read_rows

        rows = list(read_rows(self.directory).values())
        if not rows or rows[-1].time < self._began or rows[-1].facts.kind == "abort":
            return False
        try:
            return not (self.directory / rows[-1].name).samefile(self.directory / "last.ckpt")
        except OSError:
            return True
