"""Process 0 alone at work for long: the others wait for it as long as it lives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distrib.errors import InputError
from distrib.runtime.processes import Processes
from distrib.runtime.topology import Topology

from ..training.jobs import two_of

WORKER = """
import json, os, signal, sys, time
from datetime import timedelta
from distrib.errors import InputError, KetosError
from distrib.runtime import processes as module
from distrib.runtime.long_wait import Patience
from distrib.runtime.topology import topology_of

COLLECTIVES = 3.0
module.TIMEOUT = timedelta(seconds=COLLECTIVES)
BEATS = Patience(interval=0.2, look=0.1, silence=20.0)
told = []

def after_first(function, patience=BEATS):
    try:
        told.append(processes.after_first(
            function, doing="compiling the ground truth", remedy="compile first", patience=patience))
    except KetosError as error:
        told.append([type(error).__name__, error.exit_code, str(error)])
    print(json.dumps(told[-1]), flush=True)

def work():
    time.sleep(COLLECTIVES + 1.5)
    return "compiled"

def fail():
    raise InputError("no such file")

def hang():
    os.kill(os.getpid(), signal.SIGSTOP)

with module.joined(topology_of(os.environ), device="cpu") as processes:
    after_first(work)
    after_first(fail)
    if sys.argv[1] == "hang":
        after_first(hang, Patience(interval=0.1, look=0.1, silence=1.0))
    elif sys.argv[1] == "long":
        after_first(lambda: time.sleep(60), Patience(interval=0.1, look=0.1, limit=1.0))
    else:
        after_first(lambda: os.kill(os.getpid(), signal.SIGKILL))
    sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "kind", "sentence"),
    [
        (
            "hang",
            "TimeoutReached",
            "Process 0 was compiling the ground truth and has given no sign of life for",
        ),
        ("long", "TimeoutReached", "Process 0 has been compiling the ground truth for"),
        ("kill", "PeerLost", "Process 0 has ended while it was compiling the ground truth; its message"),
    ],
)
def test_the_others_wait_for_process_0_as_long_as_it_lives(
    end: str, kind: str, sentence: str, tmp_path: Path
) -> None:
    """Broken: a job that compiles for longer than a collective waits ends, and again at every attempt."""
    with two_of(WORKER, tmp_path, end) as (first, second):
        (code,) = second.wait(60)
    out, err = second.output, second.stderr
    told = [json.loads(line) for line in out.splitlines()]
    assert len(told) == 3, err
    # It can leave, too, though a thread of its may still ask.
    assert code == 7
    assert told[0] is None
    assert told[1][:2] == ["PeerError", InputError.exit_code]
    assert told[2][0] == kind
    assert told[2][2].startswith(sentence)
    if kind == "TimeoutReached":
        assert told[2][2].endswith("; compile first.")
    before = [json.loads(line) for line in first.output.splitlines()]
    assert before == ["compiled", ["InputError", 2, "no such file"]]


def test_one_process_waits_for_nobody() -> None:
    processes = Processes(Topology())
    assert processes.after_first(lambda: 3, doing="compiling", remedy="") == 3
