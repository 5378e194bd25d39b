"""Readers are forked when the threads of libraries are at rest."""

from __future__ import annotations

import hashlib
import sys
import threading
import time

import pytest

from distrib.stream.forking import wait_for_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are looked at by /proc")


def test_threads_that_sleep_are_not_waited_for() -> None:
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    began = time.monotonic()
    assert wait_for_threads(limit=30.0)
    assert time.monotonic() - began < 5.0
    ending.set()
    thread.join()


def test_a_thread_that_runs_is_waited_for() -> None:
    """A fork while it takes a lock would leave a child that waits for ever."""
    ending = threading.Event()

    def compute() -> None:
        while not ending.is_set():
            hashlib.sha256(b"x" * 50_000_000)  # without the GIL

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert not wait_for_threads(limit=0.3)
    finally:
        ending.set()
        thread.join()
    assert wait_for_threads(limit=30.0)
