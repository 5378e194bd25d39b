"""Waiting for process 0, which works alone, for as long as it shows that it lives.

What it does may take hours, and a collective that waits has a limit that is meant for processes in step. So
process 0 beats meanwhile, in the store where all have met, and the others look there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from torch._C._distributed_c10d import Store

from distrib.errors import PeerLost, TimeoutReached

_FIRST_LOOK: Final = 0.02
"""Seconds to the second look: what is short must not become longer."""
_STOP_SECONDS: Final = 5.0
"""How long a thread may take to leave; one that waits for a machine that does not answer never does."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds between beats, at most between looks, of silence that are too many, and in all."""

    interval: float = 5.0
    look: float = 0.5
    silence: float = 120.0
    limit: float = 24 * 3600.0


@contextmanager
def at_work(store: Store, key: str, patience: Patience) -> Iterator[None]:
    """Beat under ``key`` as long as the block lasts, and say then that it is over, however it ended."""
    over = threading.Event()

    def beat() -> None:
        # A store that is gone has taken the others with it; the next exchange will say so.
        with suppress(RuntimeError):
            while not over.wait(patience.interval):
                store.add(f"{key}/beats", 1)

    thread = threading.Thread(target=beat, name="at-work", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(patience.interval)
        with suppress(RuntimeError):
            store.set(f"{key}/over", "")


def wait_for_first(store: Store, key: str, patience: Patience, *, doing: str, remedy: str) -> None:
    """Return when process 0 says that it is over. ``doing`` and ``remedy`` are for the sentence.

    Raises:
        TimeoutReached: it has given no sign of life for too long, or it has all lasted too long.
        PeerLost: it has ended.
    """
    signs = _Signs(store, key, patience)
    began = time.monotonic()
    try:
        while not signs.over.wait(patience.look):
            now = time.monotonic()
            silent = now - signs.heard
            if silent > patience.silence:
                raise TimeoutReached(
                    f"Process 0 was {doing} and has given no sign of life for {silent:.0f} s; {remedy}."
                )
            if now - began > patience.limit:
                raise TimeoutReached(
                    f"Process 0 has been {doing} for {(now - began) / 3600:.1f} h; {remedy}."
                )
    finally:
        signs.stop()
    if signs.error is not None:
        raise PeerLost(
            f"Process 0 has ended while it was {doing}; its message or its launcher says why."
        ) from signs.error


class _Signs:
    """What a thread hears of process 0: a store whose machine does not answer would hold up who asks it.

    ``heard`` is the second of the last sign of life; ``over`` is set at the end, be it with an ``error``.
    """

    def __init__(self, store: Store, key: str, patience: Patience) -> None:
        self.over = threading.Event()
        self.heard = time.monotonic()
        self.error: RuntimeError | None = None
        self._store, self._key, self._patience = store, key, patience
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="long-wait", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more: a thread that comes back from C++ while Python ends aborts the process."""
        self._stopped.set()
        self._thread.join(_STOP_SECONDS)

    def _listen(self) -> None:
        beats, pause = -1, _FIRST_LOOK
        try:
            while not self._stopped.is_set() and not self._store.check([f"{self._key}/over"]):
                found = self._store.add(f"{self._key}/beats", 0)
                if found != beats:
                    beats, self.heard = found, time.monotonic()
                self._stopped.wait(pause)
                pause = min(1.5 * pause, self._patience.look)
        except RuntimeError as error:
            self.error = error
        self.over.set()
