"""One writer a run directory: a lease with a heartbeat, held by rank zero as long as the command runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn

from distrib.errors import DirectoryInUse, RunError
from distrib.files import write_error
from distrib.runtime.directory.lease_file import LEASE, FoundLease, Holder, LeaseFile, lease_in_force
from distrib.runtime.directory.machine import this_process

INTERVAL: Final = 5.0
"""Seconds between beats."""
_SILENT_AFTER: Final = 3.0
"""Beats that a holder misses before it counts as silent."""
_ATTEMPTS: Final = 100
_PAUSE: Final = 0.05
_GONE: Final = "somebody who has removed its lease.json"
_TRY_AGAIN: Final = (0.1, 0.4, 1.5)
"""Seconds between looks for a file that another machine may just be moving."""


class Lease:
    """The right to write into a run directory, until ``release`` or until another has taken it over.

    A thread beats every ``interval`` seconds and looks whether the lease is still ours. What it cannot
    write, be it for a full disk, ends nothing; a process that was stopped for long finds out in ``check``.
    """

    def __init__(self, file: LeaseFile) -> None:
        """Of a file that is in force; use ``acquire``."""
        self.directory = file.directory
        self.holder = file.holder
        self._file = file
        self._lock = threading.Lock()  # a beat half written is not read
        self._taken_by: str | None = None
        self._ending = threading.Event()
        self._released = False
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        directory: Path,
        *,
        steal: bool = False,
        environ: Mapping[str, str],
        interval: float = INTERVAL,
        report: Callable[[str], None] = lambda _: None,
    ) -> Lease:
        """The lease of ``directory``, which exists; ``environ`` names the job (SLURM_JOB_ID, RAY_JOB_ID).

        A holder that has ended on this machine is replaced at once. Any other is watched with ``steal``,
        for three of its beats by this machine's clock, after a sentence to ``report``; if it gives no sign
        of life in that time it is replaced. So is one of this very job, which its scheduler has started
        anew, perhaps because the machine of the holder has failed.

        Raises:
            DirectoryInUse: another run holds it, named in the sentence.
            InputError: the directory cannot be written.
            RunError: the disk is full.
        """
        try:
            file = LeaseFile(directory, Holder.here(environ, interval=interval))
            try:
                _put_in_force(file, steal=steal, report=report)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise write_error(directory / LEASE, error) from error
        return cls(file)

    @property
    def lost(self) -> bool:
        """Whether the lease was found to be another's; it never comes back."""
        return self._taken_by is not None

    def check(self) -> None:
        """Ask the file server whether this process may write: called right before what cannot be undone.

        Raises:
            RunError: another has taken the directory over, named in the sentence.
            OSError: the file server does not answer as it should.
        """
        self._look()
        if self._taken_by is not None:
            raise RunError(
                f"{self.directory}: was taken over by {self._taken_by}; this run writes nothing more there. "
                "Leave it to that one, or start again with another directory (-o)."
            )

    def release(self) -> None:
        """Let others have the directory; the lease is removed if it is still ours. Harmless when repeated.

        Not in a process forked from the holder, which has the object but not the lease.
        """
        if self._released or os.getpid() != self.holder.process.pid:
            return
        self._released = True
        self._ending.set()
        # A file server that does not answer must not keep a run from ending.
        self._thread.join(timeout=10.0)
        if not self._thread.is_alive():
            self._file.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _keep(self) -> None:
        while not self.lost and not self._ending.wait(self.holder.interval):
            with suppress(OSError), self._lock:
                self._file.write_beat()
            with suppress(OSError):
                self._look()

    def _look(self) -> None:
        """Note who has the lease, if it is another. Raises OSError."""
        for pause in (*_TRY_AGAIN, None):
            if self.lost:
                return
            with self._lock:
                found = lease_in_force(self.directory)
                if found is not None:
                    # What has become of the content matters not where it is our file: the next beat mends it.
                    if found.key != self.holder.token and not self._file.same_file(found):
                        self._taken_by = _who(found)
                    return
            if pause is None:
                self._taken_by = _GONE
            else:
                time.sleep(pause)


def _put_in_force(file: LeaseFile, *, steal: bool, report: Callable[[str], None]) -> None:
    """Wait for what must be waited for, and claim. Raises DirectoryInUse where another has the directory."""
    found = None
    for _ in range(_ATTEMPTS):
        found = lease_in_force(file.directory)
        if found is not None and not _has_ended(found):
            age = max(0.0, file.modified() - found.modified)
            if not steal and not _is_same_job(file, found):
                _refuse(file, found, age=age)
            _wait_for_silence(file, found, age=age, report=report)
        if file.claim(found):
            return
        time.sleep(_PAUSE)  # another was faster, and has the lease or has given it up
    raise DirectoryInUse(
        f"{file.directory}: other runs come and go there, last {_who(found)}; start again, or give another "
        "directory with -o."
    )


def _has_ended(found: FoundLease) -> bool:
    return found.holder is not None and found.holder.process.has_ended(this_process())


def _is_same_job(file: LeaseFile, found: FoundLease) -> bool:
    return found.holder is not None and file.holder.job == found.holder.job != ""


def _beats_missed(file: LeaseFile, found: FoundLease) -> float:
    """Seconds of silence after which nobody is thought to be there."""
    theirs = 0.0 if found.holder is None else found.holder.interval
    return _SILENT_AFTER * max(theirs, file.holder.interval)


def _wait_for_silence(
    file: LeaseFile, found: FoundLease, *, age: float, report: Callable[[str], None]
) -> None:
    """Return when ``found`` has given no sign of life for three beats, or is no longer in force.

    Raises DirectoryInUse at its first sign of life.
    """
    seconds = _beats_missed(file, found)
    report(f"{file.directory}: in use by {_who(found, age)}; waiting {seconds:.0f} s for a sign of life.")
    began = time.monotonic()
    ended = False
    while not ended:
        time.sleep(seconds / 15)
        # Looked for after the time too: this process may have been stopped for all of it.
        ended = time.monotonic() - began > seconds
        again = lease_in_force(file.directory)
        if again is None or again.key != found.key:
            return
        if again.sign != found.sign:
            raise DirectoryInUse(
                f"{file.directory}: in use by {_who(found)}, which gives signs of life; wait for its end, or "
                "give another directory with -o."
            )


def _refuse(file: LeaseFile, found: FoundLease, *, age: float) -> NoReturn:
    if found.holder is not None and age <= _beats_missed(file, found):
        remedy = "wait for its end, or give another directory with -o."
    else:
        remedy = "if it has ended take the directory over with --steal-lease, or give another with -o."
    raise DirectoryInUse(f"{file.directory}: in use by {_who(found, age)}; {remedy}")


def _who(found: FoundLease | None, age: float | None = None) -> str:
    """``another run (process 123 of user x on host y, job 77, since 12:03, last sign of life 4 s ago)``."""
    seen = "" if age is None else f"last sign of life {_duration(age)} ago"
    if found is None or found.holder is None:
        return f"another run ({LEASE} does not say whose{', ' if seen else ''}{seen})"
    holder = found.holder
    facts = [f"process {holder.process.pid} of user {holder.user} on host {holder.process.host}"]
    if holder.job:
        facts.append(f"job {holder.job}")
    facts.append(f"since {_clock(holder.started)}")
    if seen:
        facts.append(seen)
    return f"another run ({', '.join(facts)})"


def _clock(started: str) -> str:
    """The time of day of a time with zone; with the day where that is not today."""
    try:
        time_ = datetime.strptime(started, "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return started
    today = datetime.now(tz=time_.tzinfo).date()
    return time_.strftime("%H:%M" if time_.date() == today else "%Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
