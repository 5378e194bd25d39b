"""One run of the kill drill: started, hurt at a random moment, resumed, and so on until its end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from drill_faults import DAMAGES, FOREIGN_LEASE, SmallDisk, newest_checkpoints
from drill_jobs import Job, alive, forked, kill, launched
from drill_watch import Watch

PATIENCE = 240.0
"""Seconds after which a job that was hurt and has not ended hangs, busy as the machine may be."""

REAL_EVERY = 10
"""Of so many jobs one is started by torchrun."""

FULL_DISK = "full disk"

Victim = Literal["rank", "group", "reader", "launcher", "disk"]
Moment = Literal["start", "training", "save"]
Card = TypeVar("Card")


@dataclass(kw_only=True)
class Hurt:
    """Something that was done to a run: how far a save had come, if there was one under way, and the seconds
    of work that it cost."""

    kind: str
    killed: bool
    phase: str = ""
    lost: float | None = None
    resumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Blow:
    """What is to be done to a job, and when: at the ``number``-th save, or a part of the usual time after
    its start or its first batch."""

    victim: Victim
    moment: Moment
    number: int
    part: float
    real: bool


@dataclass(kw_only=True)
class Habits:
    """How long things take on this machine, seconds, as seen so far."""

    start: dict[bool, float] = field(default_factory=lambda: {False: 2.0, True: 15.0})
    step: float = 0.1
    save: float = 0.03

    def started(self, real: bool, seconds: float) -> None:
        """A job of this kind came to its first batch."""
        self.start[real] += 0.3 * (seconds - self.start[real])

    def saved(self, seconds: float) -> None:
        """A save took so long."""
        self.save += 0.2 * (min(seconds, 0.5) - self.save)


class Decks:
    """Kinds of harm in random order, such that each has its share however few are drawn."""

    def __init__(self, draw: random.Random, kills: int) -> None:
        self._draw = draw
        victims: list[Victim] = ["rank", "rank", "rank", "group", "reader", "launcher"]
        self._victims = self._shuffled(victims)
        self._damages = self._shuffled(list(DAMAGES))
        self._damage_share = min(0.9, max(0.5, 5 / kills))
        self._leases = 0
        self.number = 0

    def blow(self, *, disk: bool, wants_saves: bool) -> Blow:
        """The next blow; ``disk``: the disk is made full; ``wants_saves``: too few fell into a save."""
        self.number += 1
        real = self.number % REAL_EVERY == 4
        victim: Victim = "disk" if disk else next(self._victims)
        saves = 0.75 if wants_saves or victim == "disk" else 0.3
        moments: list[Moment] = ["save", "training", "start"]
        moment = self._draw.choices(moments, [saves, 0.7 * (1 - saves), 0.3 * (1 - saves)])[0]
        if victim in ("disk", "reader", "launcher") and moment == "start":
            moment = "training"  # before, there is no reader, and no work that an orphan could do
        number, part = self._draw.randint(1, 5), self._draw.random()
        return Blow(victim=victim, moment=moment, number=number, part=part, real=real)

    def damage(self) -> str | None:
        """What is to become of the files of a run that was killed, if anything."""
        if self._draw.random() > self._damage_share:
            return None
        kind = next(self._damages)
        if kind == FOREIGN_LEASE:
            self._leases += 1
            if self._leases > 3:  # waiting for signs of life takes long
                return None
        return kind

    def _shuffled(self, cards: list[Card]) -> Iterator[Card]:
        while True:
            yield from self._draw.sample(cards, len(cards))


class Run:
    """A run that is hurt until it has reached its end. ``problems`` are what ought not to have happened."""

    def __init__(
        self,
        directory: Path,
        *,
        number: int,
        words: Sequence[str],
        processes: int,
        disk: SmallDisk | None,
        logs: Path,
        draw: random.Random,
        decks: Decks,
        habits: Habits,
    ) -> None:
        """``words`` are those that start the run, without ``-o``."""
        self.directory = directory
        self.hurts: list[Hurt] = []
        self.problems: list[str] = []
        self.jobs = 0
        self.planned = ""
        self._words = [*words, "-o", str(directory)]
        self._number = number
        self._processes = processes
        self._disk = disk
        self._logs = logs
        self._draw, self._decks, self._habits = draw, decks, habits
        self._damaged: str | None = None
        self._steal = False
        self._elsewhere = 0.0

    def go_on(self, *, hurt: bool, wants_saves: bool) -> bool:
        """One job, to be hurt or to be left alone; True when the run has come to its end."""
        # A disk is made full at once, so that few kills will do, and now and then.
        disk = self._disk is not None and (not self.jobs or self._draw.random() < 0.15)
        blow = self._decks.blow(disk=disk, wants_saves=wants_saves) if hurt else None
        self.planned = "" if blow is None else f"{blow.victim} at {blow.moment}"
        job = self._start(real=blow is not None and blow.real)
        watch = Watch(self.directory)
        before, self._elsewhere = len(self.hurts), 0.0
        try:
            struck = blow is not None and self._await(job, watch, blow) and self._strike(job, watch, blow)
            if not job.ends_within(PATIENCE):
                self._problem(job, "neither ended nor went on")
            ended = time.time() - self._elsewhere
            watch.look()
        finally:
            code = job.end()
        self._check(job, watch, code=code, struck=struck)
        if code == 0 or "first_batch" in watch.events:
            for each in self.hurts if code == 0 else self.hurts[:before]:
                each.resumed = True
        if struck and code:
            lost = self._lost(job, watch, ended)
            for each in self.hurts[before:]:
                each.lost = lost
            self._damage(job, watch, ended, lost)
        return code == 0 or bool(self.problems)

    def _check(self, job: Job, watch: Watch, *, code: int, struck: bool) -> None:
        """Note what ought not to be of a job that has ended."""
        if job.rambles:
            self._problem(job, "ended with more than a sentence")
        if code and not struck:
            self._problem(job, f"ended with {code} though it was left alone")
        resumed = watch.events.get("resume", {}).get("checkpoint")
        if self._damaged is not None and resumed is not None:
            if Path(resumed).name == self._damaged:
                self._problem(job, f"went on from {self._damaged}, which is damaged")
            self._damaged = None

    def _lost(self, job: Job, watch: Watch, ended: float) -> float:
        """Seconds of the job of which no checkpoint has anything, its start among them."""
        kept = newest_checkpoints(self.directory)
        if not kept or "first_batch" not in watch.events:
            return ended - job.began
        first_batch = datetime.fromisoformat(watch.events["first_batch"]["time"]).timestamp()
        saved = max(first_batch, kept[0].stat().st_mtime)
        return first_batch - job.began + ended - saved

    def _start(self, *, real: bool, words: Sequence[str] | None = None) -> Job:
        self.jobs += 1
        printed = self._logs / f"run{self._number:02}-job{self.jobs:03}.log"
        words = self._next_words() if words is None else words
        if real:
            return launched(words, processes=self._processes, printed=printed)
        # Some launchers leave it to the processes to find out that one has gone.
        slowly = self._draw.random() < 0.5
        notices_after = 4.0 if slowly else 0.1
        return forked(words, processes=self._processes, printed=printed, notices_after=notices_after)

    def _next_words(self) -> list[str]:
        steal = ["--steal-lease"] if self._steal else []
        self._steal = False
        if newest_checkpoints(self.directory) and self._draw.random() < 0.75:
            return ["train", "--resume", str(self.directory), *steal]
        return [*self._words, "--resume", "auto", *steal]

    def _await(self, job: Job, watch: Watch, blow: Blow) -> bool:
        """Wait for the moment of the blow; False where the job ended before."""
        deadline = time.time() + PATIENCE
        first_batch = 0.0
        seen: set[str] = set()
        while job.running and time.time() < deadline:
            now = time.time()
            watch.look()
            if blow.moment == "start" and now > job.began + blow.part * self._habits.start[job.real]:
                return True
            if not first_batch and "first_batch" in watch.events and job.find_ranks():
                first_batch = now
                self._habits.started(job.real, now - job.began)
            if first_batch and blow.moment == "training":
                if now > first_batch + blow.part * 15 * self._habits.step:
                    return True
            elif first_batch:
                seen.update(watch.saves())
                if len(seen) >= blow.number:
                    if "save" in watch.events:
                        self._habits.saved(watch.events["save"]["seconds"])
                    # Anywhere from its first byte to the link that stands for it.
                    time.sleep(blow.part * self._habits.save)
                    return True
            time.sleep(0.001)
        return False

    def _strike(self, job: Job, watch: Watch, blow: Blow) -> bool:
        if blow.victim == "disk":
            return self._fill_disk(job, watch)
        if blow.victim == "launcher" and job.ranks != [job.launcher]:
            return self._kill_launcher(job, watch)
        readers = job.readers()
        if blow.victim == "reader" and readers:
            return self._kill(job, watch, [self._draw.choice(readers)], "a process that reads data")
        if blow.victim == "group" or not job.ranks:
            return self._kill_group(job, watch)
        rank = self._draw.randrange(len(job.ranks))
        done = self._kill(job, watch, [job.ranks[rank]], "rank 0" if rank == 0 else "another rank")
        if done and rank and self._draw.random() < 0.5:
            self._kill_while_it_saves_for_the_last_time(job, watch)
        return done

    def _kill(self, job: Job, watch: Watch, pids: Sequence[int], kind: str) -> bool:
        """False where they had ended before."""
        if not any(map(alive, pids)):
            return False
        kill(pids)
        self._add_kill(job, watch, pids, kind)
        return True

    def _kill_group(self, job: Job, watch: Watch, kind: str = "the whole group") -> bool:
        if not job.running:
            return False
        tree = job.tree()
        if job.real:  # torchrun gives each rank a session of its own
            kill(self._draw.sample(tree, len(tree)))
        else:
            with suppress(ProcessLookupError):
                os.killpg(job.launcher, signal.SIGKILL)
        self._add_kill(job, watch, tree, kind)
        return True

    def _add_kill(self, job: Job, watch: Watch, pids: Sequence[int], kind: str) -> None:
        if job.ranks and job.ranks[0] in pids:
            # Nobody else touches checkpoints: what it was doing is seen best when it has gone.
            deadline = time.monotonic() + 5.0
            while alive(job.ranks[0]) and time.monotonic() < deadline:
                time.sleep(0.001)
        self.hurts.append(Hurt(kind=f"SIGKILL of {kind}", killed=True, phase=watch.save_phase()))

    def _kill_while_it_saves_for_the_last_time(self, job: Job, watch: Watch) -> None:
        """Rank zero keeps what was done when another rank has gone: it may be killed in that, too."""
        deadline = time.monotonic() + 5.0
        while alive(job.ranks[0]) and time.monotonic() < deadline:
            if any("checkpoint_abort" in name for name in watch.saves()):
                time.sleep(self._draw.random() * self._habits.save)
                self._kill(job, watch, job.ranks[:1], "rank 0 while it saves because of an error")
                return
            time.sleep(0.001)

    def _kill_launcher(self, job: Job, watch: Watch) -> bool:
        """The ranks go on as orphans: another job must not come between them, until they are killed."""
        if not self._kill(job, watch, [job.launcher], "the launcher"):
            return False
        if self._draw.random() < 0.5 and "first_batch" in watch.events:
            second = self._second()
            if alive(job.ranks[0]) and "in use by" not in second.output:
                self._problem(second, "was not refused though another run is there")
        else:
            time.sleep(self._draw.random() * 10 * self._habits.step)
        orphans = self._draw.sample(job.ranks, len(job.ranks))
        self._kill(job, watch, orphans, "all ranks, orphans of their launcher")
        return True

    def _fill_disk(self, job: Job, watch: Watch) -> bool:
        """The disk gets full: the job ends by itself, or goes on when there is room again, or is killed."""
        assert self._disk is not None
        left = self._draw.choice([0, 4096, 20_000, 100_000])
        self._disk.fill(job.ranks, left)
        kind = f"{FULL_DISK} ({self._disk.kind})"
        self.hurts.append(Hurt(kind=kind, killed=False, phase=watch.save_phase()))
        outcome = self._draw.choice(["ends", "room", "killed"])
        if outcome == "ends":
            job.ends_within(20 + 30 * self._habits.step)
            if self._draw.random() < 0.3 and not job.running:
                began = time.time()
                second = self._second()
                if not second.code or "Error: " not in second.output:
                    self._problem(second, "did not say that the disk is full")
                self._elsewhere = time.time() - began
        else:
            time.sleep(self._draw.random() * 10 * self._habits.step)
        if outcome == "room":
            self._disk.free()
            job.ends_within(self._draw.random() * 20 * self._habits.step)
        if job.running:
            self._kill_group(job, watch, "the whole group, the disk being full or after")
        self._disk.free()
        return True

    def _second(self) -> Job:
        """Another job on the same directory, which must be refused; it has ended."""
        job = self._start(real=False, words=["train", "--resume", str(self.directory)])
        if not job.ends_within(PATIENCE):
            self._problem(job, "hangs where it should be refused")
        job.end()
        if job.rambles:
            self._problem(job, "ended with more than a sentence")
        return job

    def _damage(self, job: Job, watch: Watch, ended: float, lost: float) -> None:
        """Harm, now and then, what the killed job has left; the next one must cope."""
        from distrib.runtime.checkpoints.rows import read_rows

        kind = self._decks.damage()
        if kind is None:
            return
        recorded = read_rows(self.directory)
        harmed = DAMAGES[kind](self.directory, self._draw)
        if harmed is None:
            return
        more = self._lost(job, watch, ended) - lost
        self.hurts.append(Hurt(kind=kind, killed=False, lost=more))
        # What has no row is known to be whole by the checksums in it, which leave out a few idle bytes.
        if harmed.name in recorded:
            self._damaged = harmed.name
        if kind == FOREIGN_LEASE:
            second = self._second()
            if "host elsewhere" not in second.output or "--steal-lease" not in second.output:
                self._problem(second, "was not refused the directory of a run on another machine")
            self._steal = True

    def _problem(self, job: Job, what: str) -> None:
        self.problems.append(f"{self.directory}: a job {what}; see {job.printed}")
