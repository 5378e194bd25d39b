"""Where a data set of shards is made before it takes its place, and what a killed compilation left there.

.DIR.compiling/layout.json      what the parts were cut by; others than those wanted now are set aside
               parts/00000/     shards of rank 0 (see shards.part)
               previous/*/      parts that only serve as a source of lines to copy
               peers/           how processes find each other (see shards.peers)
               moves.json       which shard of which part becomes which of the data set
               dataset/         the data set, whole once its dataset.json is there
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from distrib.files import write_error, written_whole
from distrib.shards.compiling.output_folder import OutputFolder
from distrib.shards.compiling.part import WrittenShard, index_path, record_path, written_shards


class WorkFolder:
    """The work folder of an output folder.

    Methods that say nothing else raise InputError or RunError where it cannot be written.
    """

    def __init__(self, output: OutputFolder) -> None:
        self.path = output.work
        self.dataset = output.dataset
        self._parts = self.path / "parts"
        self._previous = self.path / "previous"
        self._layout = self.path / "layout.json"
        self._moves = self.path / "moves.json"

    def part(self, rank: int) -> Path:
        """The folder of a rank's part."""
        return self._parts / f"{rank:05d}"

    def prepare(self, layout: str) -> None:
        """Rank zero: take back a merge that was killed, and set aside parts of another ``layout``."""
        try:
            self._take_back()
            if self._parts.is_dir() and _read_json(self._layout).get("layout") != layout:
                self._previous.mkdir(exist_ok=True)
                aside = self._previous / secrets.token_hex(4)
                self._parts.rename(aside)
            self._parts.mkdir(exist_ok=True)
            _write_json(self._layout, {"layout": layout})
        except OSError as error:
            raise write_error(self.path, error) from error

    def begin_part(self, rank: int) -> Path:
        """The folder of a rank's part, without files that a killed process had not finished."""
        folder = self.part(rank)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob(".*.part"):
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(folder, error) from error
        return folder

    def set_aside(self, shards: list[WrittenShard]) -> None:
        """Move the last shards of a part away: their sources have changed, but not all of them."""
        if not shards:
            return
        aside = self._previous / secrets.token_hex(4) / "part"
        try:
            aside.mkdir(parents=True)
            # From the last on, so that what is left of the part is whole at any moment.
            for shard in reversed(shards):
                number = shard.number - shards[0].number
                if shard.record.name is not None:
                    shard.path.rename(aside / shard.record.name)
                    index_path(shard.folder, shard.number).rename(index_path(aside, number))
                shard.record_path.rename(record_path(aside, number))
        except OSError as error:
            raise write_error(aside, error) from error

    def previous_parts(self) -> Iterator[Path]:
        """Folders of parts to copy from."""
        yield from sorted(self._previous.glob("*/*/"))

    def move_shards(self, names: Mapping[str, WrittenShard]) -> None:
        """Move shards into the data set under these names. Raises OSError."""
        places = {name: str(shard.path.relative_to(self.path)) for name, shard in names.items()}
        _write_json(self._moves, places)
        for name, shard in names.items():
            shard.path.rename(self.dataset / name)

    def is_worthless(self) -> bool:
        """Whether no shard is whole in it."""
        folders = [*self._parts.glob("*/"), *self.previous_parts()]
        return not self._moves.exists() and not any(
            shard.record.name is not None for folder in folders for shard in written_shards(folder)
        )

    def _take_back(self) -> None:
        for name, place in _read_json(self._moves).items():
            with contextlib.suppress(FileNotFoundError):
                (self.dataset / name).rename(self.path / place)
        self._moves.unlink(missing_ok=True)
        if self.dataset.is_dir():
            for left in self.dataset.iterdir():
                left.unlink()
            self.dataset.rmdir()


def _read_json(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_json(path: Path, values: Mapping[str, str]) -> None:
    with written_whole(path) as file:
        file.write(json.dumps(dict(values)).encode())
