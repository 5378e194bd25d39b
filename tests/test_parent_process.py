"""Readers of a training process that was killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from distrib.parent_process import end_with_parent


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux")
def test_a_reader_ends_with_its_killed_parent() -> None:
    """Else the other processes of a job wait for seconds until they find out that one has gone."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            end_with_parent()
            os.write(writing, b"1")
        time.sleep(60)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"1"
    killed = time.monotonic()
    os.kill(parent, signal.SIGKILL)
    # The reader has the other side of the pipe, as it would have connections.
    assert os.read(reading, 1) == b""
    assert time.monotonic() - killed < 3
    os.waitpid(parent, 0)
    os.close(reading)
