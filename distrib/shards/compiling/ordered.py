"""Work spread over processes with results in the order of the tasks, so output never depends on speed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait
from typing import Final, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD: Final = 2
"""Tasks a worker that are handed out or waiting to be consumed: more would only hold more results."""


class WorkerDied(Exception, Generic[Task]):
    """A process ended without a result; ``suspects`` are the tasks the processes were working on."""

    def __init__(self, suspects: list[Task]) -> None:
        super().__init__(suspects)
        self.suspects = suspects


def map_ordered(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int
) -> Generator[Result, None, None]:
    """``function`` of each task, in order, computed by ``workers`` processes (0 or 1: by this one).

    ``function`` and the tasks must be picklable. At most ``TASKS_AHEAD`` tasks a worker are under way, so
    memory does not depend on the number of tasks. Close the generator to end the processes early.

    Raises:
        WorkerDied: a process was killed, for want of memory as a rule.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    remaining = iter(tasks)
    pending: deque[tuple[Task, Future[Result]]] = deque()
    executor = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    try:
        for task in islice(remaining, TASKS_AHEAD * workers):
            pending.append((task, _submit(executor, function, task)))
        while pending:
            result = pending[0][1].result()
            pending.popleft()
            for task in islice(remaining, 1):
                pending.append((task, _submit(executor, function, task)))
            yield result
    except BrokenProcessPool as error:
        lost = [task for task, future in pending if not _has_result(future)]
        raise WorkerDied(lost[:workers]) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _submit(executor: ProcessPoolExecutor, function: Callable[[Task], Result], task: Task) -> Future[Result]:
    """Submit with Ctrl-C held back: a process started here inherits that, and leaves it to this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(function, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _has_result(future: Future[Result]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _end_with_parent() -> None:
    """End this process when its parent is killed: it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
