"""A signal to one process ends the whole job at the end of a step, never in the middle of talking."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from distrib.errors import KetosError
from distrib.runtime.directory.run_directory import RunDirectory

STOP_SIGNALS: Final = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM)
"""The signals that ask a run to save and end. Where processes got different ones the first of these counts:
a scheduler's early notice says more than the SIGTERM that a launcher sends to whoever is left."""

_SIGNALLED: Final = 128


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """Why all processes end after this step: ``signal``, or None where another run has the directory.

    ``since`` is when the signal came, in seconds of this process's ``time.monotonic``.
    """

    signal: signal.Signals | None
    since: float

    @property
    def seconds(self) -> float:
        """Seconds since the signal."""
        return time.monotonic() - self.since


class StopRequested(Exception):
    """A process of the job was asked to end; raised at the same step by all, with the same ``request``."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(request)
        self.request = request


class Interruption:
    """What asks this process to end; told to all with the sums of a step, so that all end after the same."""

    def __init__(self) -> None:
        self.taken_over = False
        """Whether the run directory was found to be another run's."""
        self._signal: int | None = None
        self._since = 0.0

    def note(self, number: int, _: Any = None) -> None:
        """Remember a signal; of several the first. A signal handler: it does nothing else."""
        if self._signal is None:
            self._since = time.monotonic()
            self._signal = number

    def votes(self) -> list[float]:
        """This process's share of the sums from which ``agreed`` learns what all were asked."""
        number = self._signal
        waited = 0.0 if number is None else time.monotonic() - self._since
        return [*(float(number == each) for each in STOP_SIGNALS), waited, float(self.taken_over)]

    @staticmethod
    def agreed(sums: Sequence[float]) -> StopRequest | None:
        """What follows from the sums of all ``votes``, the same at every process."""
        *counts, waited, taken_over = sums
        if taken_over:
            return StopRequest(signal=None, since=time.monotonic())
        asked = [number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count]
        if not asked:
            return None
        return StopRequest(signal=asked[0], since=time.monotonic() - waited / sum(counts))


@contextmanager
def signals_noted(interruption: Interruption) -> Iterator[None]:
    """Note the signals that ask for an end during the block, instead of ending at once.

    They stay noted where the block ends because of one: a launcher that sees one process leave sends SIGTERM
    to the others, which must not break what they still have to do. After anything else they work as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interruption.note) for number in STOP_SIGNALS}
    leaving = False
    try:
        yield
    except KetosError as error:
        leaving = error.exit_code > _SIGNALLED
        raise
    finally:
        if not leaving:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling signals.

    Its handlers talk to the other processes from inside the signal, wherever they are: with several
    processes the job then hangs as often as it ends. What one process learns it would tell all others before
    each step, by a collective on the device; ours travels with what they tell each other anyway.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    pass


class StopWhenTakenOver(Callback):
    """Ends a run whose directory another has taken over: two must not write into one."""

    def __init__(self, claimed: RunDirectory | None, interruption: Interruption) -> None:
        self._claimed = claimed
        self._interruption = interruption

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The lease's own thread has looked."""
        if self._claimed is not None and self._claimed.lease.lost:
            self._interruption.taken_over = True


class ReadersLetGo(Callback):
    """Keeps the end of a reader process from breaking what a run does when it needs no more lines.

    torch raises its error out of whatever is being done, be it a save; and a scheduler that asks a run to
    end asks its readers as well.
    """

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Before anything is saved: this comes first among the callbacks."""
        self._let_go()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After the last validation."""
        self._let_go()

    def _let_go(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
