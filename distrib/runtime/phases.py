"""What a process is doing: named phases, so that one that hangs can say where."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase under way: its name as in "has been ... for 9 s", and the second it began or went on at.

    ``exchange`` is the number of the exchange with the other processes that it waits in, 0 for none;
    ``exchanges`` is how many were begun so far. ``data``: it waits for data.
    """

    name: str
    since: float
    data: bool = False
    exchange: int = 0
    exchanges: int = 0


class Phases:
    """The phases of the thread that makes this object; what other threads say of theirs is not heard.

    ``current`` may be read from any thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owner = threading.get_ident()
        self._exchanges = 0
        self.current = Phase(name="starting", since=clock())

    def enter(self, name: str, *, data: bool = False) -> None:
        """Another phase has begun; ``data``: one in which the process waits for what it reads."""
        if threading.get_ident() == self._owner:
            self.current = Phase(name=name, since=self._clock(), data=data, exchanges=self._exchanges)

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """A phase inside the one under way, which then goes on as if it had just begun."""
        outer = self.current
        self.enter(name)
        try:
            yield
        finally:
            self._return_to(outer)

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """The process waits for the others, inside the phase under way."""
        if threading.get_ident() != self._owner:
            yield
            return
        outer = self.current
        self._exchanges += 1
        number = self._exchanges
        self.current = replace(outer, since=self._clock(), exchange=number, exchanges=number, data=False)
        try:
            yield
        finally:
            self._return_to(outer)

    def _return_to(self, outer: Phase) -> None:
        if threading.get_ident() == self._owner:
            self.current = replace(outer, since=self._clock(), exchanges=self._exchanges)
