"""Processes that work on one folder together, on one machine or many, with nothing but a shared file system.

Every process holds a lock, says hello with a word of its own, and then shows that it lives by writing to a
file every few seconds. Rank zero answers the hellos with one agreed run id, so that files which a killed run
left behind are never taken for those of this one. A process is judged by whether its file changes, not by
the file's time: the clocks of two machines differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from distrib.errors import InputError, KetosError, RunError
from distrib.files import write_error, written_whole
from distrib.shards.compiling.folder_lock import FolderInUse, FolderLock

_BEAT_BYTES: Final = 96


@dataclass(frozen=True, kw_only=True)
class PeerTimes:
    """Seconds: between signs of life, of silence that mean death, to wait for others to start, to look."""

    beat: float = 3.0
    silence: float = 60.0
    start: float = 300.0
    poll: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far work is: sources done, lines written, files and lines left out."""

    pages: int = 0
    lines: int = 0
    skipped: int = 0


class Peers:
    """This process among the ``world_size`` that work on ``folder``; a context manager that holds its lock.

    ``task`` is the same for all processes that were given the same options and files.

    Raises:
        InputError: another process holds this rank's lock, or another rank has other options.
        RunError: another process failed or fell silent.
    """

    def __init__(self, folder: Path, *, rank: int, world_size: int, task: str, times: PeerTimes) -> None:
        self.rank = rank
        self.world_size = world_size
        self._folder = folder
        self._task = task
        self._times = times
        self._others = [other for other in range(world_size) if other != rank]
        self._run = ""
        self._progress = Progress()
        self._signs: dict[int, tuple[str, float]] = {}
        self._looked = 0.0
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Peers:
        try:
            self._lock = FolderLock(self._folder, f"{self.rank:05d}.lock")
            if self.world_size > 1:
                self._file(self.rank, "left").unlink(missing_ok=True)
                self._heart = threading.Thread(target=self._beat, name="sign-of-life", daemon=True)
                self._heart.start()
        except FolderInUse:
            raise InputError(
                f"Another process is at work in {self._folder.parent}; wait until it has ended, or choose "
                "another -o."
            ) from None
        except OSError as error:
            raise write_error(self._folder, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.tell_failure(error)
        if self._heart is not None:
            with contextlib.suppress(OSError, KetosError):
                self._say("left")
            self._stop.set()
            self._heart.join()
        self._lock.close()

    def agree(self) -> None:
        """Wait until all processes are there and know the run id."""
        if self.world_size == 1:
            return
        word = secrets.token_hex(8)
        self._say("hello", word=word, task=self._task)
        if self.rank == 0:
            self._gather()
        else:
            self._join(word)

    def report(self, progress: Progress) -> Progress:
        """Say how far this process is and hear, at rank zero, how far all are together.

        Every few seconds the others are looked at: raises KetosError where one failed or fell silent.
        """
        self._progress = progress
        if self.world_size == 1:
            return progress
        now = time.monotonic()
        if now - self._looked > self._times.beat:
            self._looked = now
            self._check(self._others if self.rank == 0 else [0])
        return self._total() if self.rank == 0 else progress

    def finish_share(self, reused: int) -> None:
        """Say that this process has done its share, for which it reused so many sources."""
        self._say("done", reused=reused)

    def wait_for_shares(self, on_progress: Callable[[Progress], None]) -> int:
        """Rank zero: wait until every process has done its share; the number of sources they reused."""
        self._wait_for("done", self._others, lambda: on_progress(self._progress))
        return sum(int(self._hear(other, "done")["reused"]) for other in self._others)

    def finish(self) -> None:
        """Rank zero: say that the data set is there."""
        if self.world_size > 1:
            self._say("finished")

    def wait_for_finish(self) -> None:
        """Other ranks: wait until rank zero has finished the data set. Raises what rank zero met."""
        self._wait_for("finished", [0], lambda: None)

    def tell_failure(self, error: BaseException) -> None:
        """Say that this process cannot go on, and why; the first failure told stands."""
        if self.world_size == 1 or self._has(self.rank, "failed") or self._has(self.rank, "finished"):
            return
        code = error.exit_code if isinstance(error, KetosError) else RunError.exit_code
        message = str(error) if isinstance(error, KetosError) else f"it ended with {type(error).__name__}"
        with contextlib.suppress(OSError, KetosError):
            self._say("failed", error=message, code=code)

    def wait_for_leaving(self) -> None:
        """Rank zero: wait until nobody uses the folder any more, whoever failed or fell silent."""
        for _ in self._polls():
            if all(self._has(other, "left") or not self._is_alive(other) for other in self._others):
                return

    def _gather(self) -> None:
        self._run = secrets.token_hex(8)
        answered: Mapping[str, Any] = {}
        deadline = time.monotonic() + self._times.start
        for _ in self._polls():
            hellos = {other: self._hear(other, "hello") for other in self._others}
            words = {str(other): hello["word"] for other, hello in hellos.items() if "word" in hello}
            if words != answered:  # a process that starts late replaces what a killed one said
                self._say("run", words=words, task=self._task)
                answered = words
            missing = [other for other in self._others if not self._has(other, "ready")]
            if not missing:
                return self._compare(hellos)
            self._look_for_start(missing[0], deadline)
        return None

    def _join(self, word: str) -> None:
        deadline = time.monotonic() + self._times.start
        for _ in self._polls():
            answer = self._hear(0, "run")
            if answer.get("words", {}).get(str(self.rank)) == word:
                self._run = str(answer["run"])
                self._say("ready")
                if answer.get("task") != self._task:
                    raise _other_task(self.rank)
                return
            self._look_for_start(0, deadline)

    def _look_for_start(self, other: int, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise RunError(
                f"Rank {other} of {self.world_size} did not start within {self._times.start:.0f} seconds; "
                "see what it printed, and start all processes together."
            )

    def _compare(self, hellos: Mapping[int, Mapping[str, Any]]) -> None:
        for other, hello in hellos.items():
            if hello.get("task") != self._task:
                raise _other_task(other)

    def _wait_for(self, event: str, ranks: Collection[int], on_poll: Callable[[], None]) -> None:
        waiting = set(ranks)
        if not waiting:
            return
        for _ in self._polls():
            on_poll()
            waiting = {other for other in waiting if not self._has(other, event)}
            if not waiting:
                return
            self._check(waiting)

    def _check(self, ranks: Collection[int]) -> None:
        """Raises KetosError if one of ``ranks`` has failed or been silent for too long."""
        for other in ranks:
            failure = self._hear(other, "failed")
            if failure and failure["run"] == self._run:
                kind = InputError if failure.get("code") == InputError.exit_code else RunError
                # What rank zero says is about the whole of it and is repeated as it is.
                raise kind(("" if other == 0 else f"Rank {other} failed: ") + str(failure["error"]))
            if not self._is_alive(other):
                raise RunError(
                    f"Rank {other} has been silent for {self._times.silence:.0f} seconds and must have been "
                    "killed or lost; the same command, started again, goes on from what has been done."
                )

    def _is_alive(self, other: int) -> bool:
        """Whether the file of a process has changed since it was last looked at, or not long before."""
        try:
            sign = self._file(other, "alive").read_text(encoding="ascii", errors="replace")
        except OSError:
            sign = ""
        now = time.monotonic()
        before, since = self._signs.get(other, (None, now))
        if sign != before:
            self._signs[other] = (sign, now)
            return True
        return now - since <= self._times.silence

    def _beat(self) -> None:
        """Write a sign of life again and again, over the one before so that it needs no new space."""
        count = 0
        descriptor = -1
        while True:
            at = self._progress
            sign = json.dumps([count, self._run, at.pages, at.lines, at.skipped]).ljust(_BEAT_BYTES)
            count += 1
            # The others take this process for dead if it cannot write; it must not die of that itself.
            with contextlib.suppress(OSError):
                if descriptor < 0:
                    descriptor = os.open(self._file(self.rank, "alive"), os.O_CREAT | os.O_WRONLY, 0o644)
                os.pwrite(descriptor, sign.encode(), 0)
                os.fsync(descriptor)
            if self._stop.wait(self._times.beat):
                break
        if descriptor >= 0:
            os.close(descriptor)

    def _total(self) -> Progress:
        at = self._progress
        pages, lines, skipped = at.pages, at.lines, at.skipped
        for sign, _ in self._signs.values():
            try:
                _, run, *numbers = json.loads(sign)
                more = [int(number) for number in numbers]
            except ValueError:
                continue
            if run == self._run and len(more) == 3:
                pages, lines, skipped = pages + more[0], lines + more[1], skipped + more[2]
        return Progress(pages=pages, lines=lines, skipped=skipped)

    def _file(self, rank: int, name: str) -> Path:
        return self._folder / f"{rank:05d}.{name}"

    def _say(self, event: str, **values: Any) -> None:
        path = self._file(self.rank, event)
        try:
            with written_whole(path) as file:
                file.write(json.dumps({"run": self._run, **values}).encode())
        except OSError as error:
            raise write_error(path, error) from error

    def _hear(self, rank: int, event: str) -> dict[str, Any]:
        """What a process said, in this run or an earlier one; nothing if it said nothing."""
        try:
            said = json.loads(self._file(rank, event).read_bytes())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) and "run" in said else {}

    def _has(self, rank: int, event: str) -> bool:
        run: object = self._hear(rank, event).get("run", "")
        return run == self._run and run != ""

    def _polls(self) -> Iterator[None]:
        """Now, soon, and then every ``poll`` seconds."""
        pause = 0.02
        while True:
            yield
            time.sleep(pause)
            pause = min(1.5 * pause, self._times.poll)


def _other_task(rank: int) -> InputError:
    return InputError(
        f"Rank {rank} was given other options or ground truth than rank 0; give all processes the same."
    )
