"""Saving checkpoints while training goes on: copied in a moment, written by a thread, whole or absent.

A save has phases. First each process that holds something writes it aside; of a folder checkpoint, rank zero
then adds the table of contents and gives the folder its name. A phase is over when every process has said so
in the sums that training makes at each step boundary (``votes``, ``settle``), so that all see the same saves
succeed and fail, and no thread ever speaks to another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from torch import Tensor

from distrib.errors import KetosError, RunError
from distrib.files import write_error
from distrib.runtime.checkpoints.commit import CheckpointKeeper, Order, Saved, write_file, write_part
from distrib.runtime.checkpoints.files import aside_path, remove
from distrib.runtime.checkpoints.host_copies import HostCopies
from distrib.runtime.checkpoints.rows import CheckpointFacts, Kind
from distrib.runtime.checkpoints.writing import plain
from distrib.runtime.processes import Processes
from distrib.runtime.state import LocalState, Piece

__all__ = ["CheckpointFacts", "CheckpointStore", "Kind"]

Event = Callable[[str, dict[str, Any]], None]

_CLOSING_SECONDS = 30.0


class CheckpointStore:
    """Writes the checkpoints of a run, one store a process, made and used by all in the same order.

    ``failures`` counts the saves that failed since the last that did not, the same at every process.
    """

    def __init__(
        self,
        directory: Path,
        *,
        processes: Processes,
        keep_best: int,
        keep_last: int,
        sharded: bool,
        strategy: str = "",
        command: str = "train",
        guard: Callable[[], None] = lambda: None,
        on_event: Event = lambda _, __: None,
    ) -> None:
        """``directory`` exists and is held by this run: what earlier ones left half written is removed.

        ``sharded``: every process holds a part, and checkpoints are folders; else rank zero holds all, and
        they are files. ``command`` is the one that goes on with the run. ``guard`` is called before a
        checkpoint takes its name, and raises a KetosError where it must not. ``on_event`` gets at rank zero
        ``save``, ``save_failed`` and ``pruned``, with facts.
        """
        self.directory = directory
        self.failures = 0
        self._processes = processes
        self._first = processes.topology.first
        self._sharded = sharded
        self._on_event = on_event
        self._command = command
        self._copies = HostCopies()
        self._save: _Save | None = None
        self._asked = False
        self._failure: str | None = None
        self._keeper = CheckpointKeeper(
            directory,
            keep_best=keep_best,
            keep_last=keep_last,
            strategy=strategy,
            world_size=processes.topology.world_size,
            guard=guard,
        )
        # The processes of a folder checkpoint write to one place without having to agree on it again.
        self._token = processes.on_first(self._keeper.begin)
        self._count = 0

    def save(
        self,
        name: str,
        common: Mapping[str, Any],
        state: LocalState,
        facts: CheckpointFacts,
        *,
        background: bool = True,
    ) -> None:
        """Save a checkpoint under ``name``; called by all processes.

        On return the state may change: it has been copied. Without ``background`` the checkpoint has been
        written as well, or has failed and been counted. A save still in flight is waited for.

        Raises:
            TypeError: ``common`` or the optimizer's groups hold something that is not of a plain type.
        """
        began = time.perf_counter()
        self._drain()
        self._count += 1
        self._asked = False
        aside = aside_path(self.directory / name, f"{self._token}{self._count:04x}")
        values: dict[str, Tensor] = {}
        content: dict[str, Any] = {}
        if self._first or self._sharded:
            content = self._content(common, state, facts)
            values = self._copies.take(state.pieces)
        stall = time.perf_counter() - began if background else None
        order = Order(name=name, aside=aside, facts=facts, began=began, stall=stall)
        self._save = save = _Save(order=order)
        if self._sharded:
            topology = self._processes.topology
            pieces, rank, world_size = state.pieces, topology.rank, topology.world_size
            save.task = _Task(lambda: write_part(aside, content, values, pieces, rank, world_size))
        elif self._first:
            save.task = _Task(lambda: self._write(save, content, values, state.pieces))
        if not background:
            self._drain()

    def votes(self) -> tuple[int, int]:
        """Whether this process has written its share of the save in flight (1 or 0), and whether it failed.

        To be summed over all processes and given to ``settle`` before anything else is asked of the store.
        """
        if self._save is None:
            return 0, 0
        self._asked = True
        task = self._save.task
        if task is None:
            return 1, 0
        if not task.done:
            return 0, 0
        return (1, 0) if task.error is None else (0, 1)

    def settle(self, written: int, failed: int) -> None:
        """Take note of the sums of all ``votes``; called by all processes."""
        save = self._save
        if save is None or not self._asked or written + failed < self._processes.topology.world_size:
            return
        self._asked = False
        if failed:
            self._give_up(save)
        elif self._sharded and not save.committing:
            save.committing = True
            save.task = _Task(lambda: self._commit(save)) if self._first else None
        else:
            self._conclude(save)

    def finish(self) -> None:
        """Wait until the save in flight is on the disk; called by all processes before a run ends well.

        Raises RunError (at the others PeerError) where the last save failed.
        """
        self._drain()
        if self._failure is not None:
            self._processes.stop(RunError(self._failure))

    def save_alone(
        self, name: str, common: Mapping[str, Any], state: LocalState, facts: CheckpointFacts
    ) -> None:
        """Save without asking anybody, and return when it is written: for when others may not answer.

        Only rank zero writes.

        Raises RunError where it cannot be written, or where no process holds the whole state.
        """
        if self._sharded and self._processes.several:
            raise RunError(f"{name} cannot be written by one process: each holds a part of the state.")
        if not self._first:
            return
        if not self._processes.several:
            self._drain()
        elif self._save is not None and self._save.task is not None:
            self._save.task.wait()  # and what it wrote has its name: it is a file
        self._save = None
        began = time.perf_counter()
        aside = aside_path(self.directory / name)
        save = _Save(order=Order(name=name, aside=aside, facts=facts, began=began, stall=None))
        content = self._content(common, state, facts)
        try:
            self._write(save, content, self._copies.take(state.pieces), state.pieces)
        except OSError as error:
            raise RunError(self._sentence(self.directory / name, error)) from error
        self._report(save)

    def close(self) -> None:
        """Wait a little for what is being written here; asks nobody."""
        if self._save is not None and self._save.task is not None:
            self._save.task.wait(_CLOSING_SECONDS)

    def _content(
        self, common: Mapping[str, Any], state: LocalState, facts: CheckpointFacts
    ) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, as it is now."""
        return {
            "common": plain(dict(common)),
            "groups": plain(state.groups, "groups"),
            "facts": {"kind": facts.kind, "step": facts.step, "epoch": facts.epoch, "score": facts.score},
        }

    def _write(
        self,
        save: _Save,
        content: Mapping[str, Any],
        values: Mapping[str, Tensor],
        pieces: Mapping[str, Piece],
    ) -> None:
        """A file checkpoint from beginning to end."""
        try:
            written = write_file(save.order.aside, content, values, pieces)
            save.saved = self._keeper.commit(save.order, written)
        except BaseException:
            remove(save.order.aside)  # room for the next
            raise

    def _commit(self, save: _Save) -> None:
        """A folder checkpoint whose parts are all there."""
        save.saved = self._keeper.commit_folder(save.order)

    def _drain(self) -> None:
        """Wait until no save is in flight; all processes come here together."""
        while self._save is not None:
            if self._save.task is not None:
                self._save.task.wait()
            written, failed = self._processes.sum(self.votes())
            self.settle(int(written), int(failed))

    def _conclude(self, save: _Save) -> None:
        self._save, self._failure, self.failures = None, None, 0
        self._report(save)

    def _report(self, save: _Save) -> None:
        if save.saved is None:
            return
        self._on_event("save", save.saved.row.json())
        for problem in save.saved.problems:
            self._on_event("save_problem", {"name": save.order.name, "reason": problem})
        if save.saved.removed:
            self._on_event("pruned", {"names": save.saved.removed})

    def _give_up(self, save: _Save) -> None:
        """All processes have stopped writing, and one of them has failed."""
        error = None if save.task is None else save.task.error
        reason = None if error is None else self._sentence(self.directory / save.order.name, error)
        reasons = [each for each in self._processes.gather(reason) if each is not None]
        self._save, self._failure = None, reasons[0]
        self.failures += 1
        if self._first:
            with suppress(OSError):  # else the next run removes it
                remove(save.order.aside)
            order = save.order
            facts = {"name": order.name, "kind": order.facts.kind, "step": order.facts.step}
            self._on_event("save_failed", {**facts, "reason": reasons[0], "failures": self.failures})

    def _sentence(self, path: Path, error: Exception) -> str:
        if isinstance(error, OSError):
            go_on = (
                f"Then go on from the checkpoint before with `ketos {self._command} --resume {path.parent}`."
            )
            return f"{write_error(path, error)} {go_on}"
        if isinstance(error, KetosError):
            return str(error)
        return f"{path}: could not be written ({type(error).__name__}: {error})."


@dataclass(kw_only=True)
class _Save:
    """A save in flight; ``task`` is what this process does for it now, if anything."""

    order: Order
    committing: bool = False
    task: _Task | None = None
    saved: Saved | None = None


class _Task:
    """Work in a thread of its own; ``error`` is what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._work = work
        # A disk that hangs must not keep the process from ending.
        self._thread = Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it has ended, at most ``seconds``."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # a thread has nobody to raise to: whoever asks finds it
            self.error = error
