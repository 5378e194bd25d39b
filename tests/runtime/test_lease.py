"""One writer a run directory, with real processes that are started at once, killed, stopped and robbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distrib.errors import DirectoryInUse, InputError, RunError
from distrib.runtime.directory import lease_file
from distrib.runtime.directory.lease import Lease
from distrib.runtime.directory.lease_file import LEASE

BEAT = 0.2
"""Seconds between beats in these tests."""

PARTICIPANT = """
import json, sys
from pathlib import Path
from distrib.errors import KetosError
from distrib.runtime.directory.lease import Lease
lease = None
for line in sys.stdin:
    what, directory, steal = json.loads(line)
    answer = "done"
    try:
        if what == "acquire":
            lease = Lease.acquire(Path(directory), steal=steal, environ={}, interval=float(sys.argv[1]))
        elif what == "check":
            lease.check()
        elif what == "release" and lease is not None:
            lease.release()
            lease = None
    except KetosError as error:
        answer = f"{type(error).__name__}: {error}"
    print(answer, flush=True)
"""


class Participant:
    """A process that does with a lease what it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARTICIPANT, str(BEAT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def tell(self, what: str, directory: Path, *, steal: bool = False) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([what, str(directory), steal]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, what: str, directory: Path, *, steal: bool = False) -> str:
        self.tell(what, directory, steal=steal)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start() -> Iterator[Callable[[], Participant]]:
    started: list[Participant] = []

    def one() -> Participant:
        started.append(Participant())
        return started[-1]

    yield one
    for participant in started:
        participant.kill()
        for stream in (participant.process.stdin, participant.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is damaged is looked at again for half a second, which here never helps."""
    monkeypatch.setattr(lease_file, "_TRY_AGAIN", (0.001, 0.001))
    monkeypatch.setattr("distrib.runtime.directory.lease._TRY_AGAIN", (0.01,))


def acquire(directory: Path, *, steal: bool = False, **environ: str) -> Lease:
    return Lease.acquire(directory, steal=steal, environ=environ, interval=BEAT)


def left_by_another_host(directory: Path, **changes: Any) -> dict[str, Any]:
    """A lease as a process of another machine has left it: nobody beats, nobody here can ask for it."""
    with acquire(directory, SLURM_JOB_ID="77"):
        row: dict[str, Any] = json.loads((directory / LEASE).read_text())
    row["process"] |= {"host": "node17", "boot_id": "another", "pid": 123}
    row |= {"token": "0" * 32, "user": "x"} | changes
    (directory / LEASE).write_text(json.dumps(row))
    return row


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_there_while_it_is_held_and_leaves_nothing(tmp_path: Path) -> None:
    with acquire(tmp_path) as lease:
        assert files(tmp_path) == {LEASE}
        lease.check()
        assert not lease.lost
    assert files(tmp_path) == set()
    lease.release()


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    """Whoever starts twice by mistake must find out which run to look for."""
    with acquire(tmp_path, SLURM_JOB_ID="77") as lease:
        with pytest.raises(DirectoryInUse) as refused:
            acquire(tmp_path)
        with pytest.raises(DirectoryInUse, match="which gives signs of life; wait for its end"):
            acquire(tmp_path, steal=True)
        lease.check()
        assert files(tmp_path) == {LEASE}
    sentence = str(refused.value)
    holder = lease.holder
    assert sentence.startswith(
        f"{tmp_path}: in use by another run (process {os.getpid()} of user {holder.user} on host "
        f"{holder.process.host}, job 77, since {holder.started[11:16]}, last sign of life 0 s ago); wait for "
    )
    assert sentence.endswith("wait for its end, or give another directory with -o.")


@pytest.mark.parametrize("killed", [False, True], ids=["nobody", "killed"])
def test_of_four_that_start_at_once_exactly_one_gets_it(
    killed: bool, tmp_path: Path, start: Callable[[], Participant]
) -> None:
    """Two writers would mix their checkpoints: a fresh directory, and one whose holder was killed."""
    four = [start() for _ in range(4)]
    for number in range(20):
        directory = tmp_path / str(number)
        directory.mkdir()
        if killed:
            with acquire(directory) as lease:
                row = json.loads((directory / LEASE).read_text())
            row["process"]["start"] = lease.holder.process.start - 1
            (directory / LEASE).write_text(json.dumps(row))
        for participant in four:
            participant.tell("acquire", directory)
        answers = [participant.answer() for participant in four]
        won = four[answers.index("done")]
        assert answers.count("done") == 1, answers
        assert all(f"process {won.process.pid} of" in answer for answer in answers if answer != "done")
        assert won.ask("check", directory) == "done"
        assert files(directory) == {LEASE}
        for participant in four:
            participant.ask("release", directory)
        assert files(directory) == set()


def test_of_four_thieves_exactly_one_gets_it(tmp_path: Path, start: Callable[[], Participant]) -> None:
    four = [start() for _ in range(4)]
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        left_by_another_host(directory)
        for participant in four:
            participant.tell("acquire", directory, steal=True)
        answers = [participant.answer() for participant in four]
        assert answers.count("done") == 1, answers
        assert sum("signs of life" in answer for answer in answers) == 3, answers
        assert four[answers.index("done")].ask("check", directory) == "done"
        for participant in four:
            participant.ask("release", directory)
        assert files(directory) == set()


def test_a_killed_run_of_this_machine_is_replaced_at_once(
    tmp_path: Path, start: Callable[[], Participant]
) -> None:
    """A restart after kill -9 must need neither patience nor an option."""
    first = start()
    assert first.ask("acquire", tmp_path) == "done"
    first.kill()
    assert files(tmp_path) == {LEASE}
    with acquire(tmp_path) as lease:
        assert files(tmp_path) == {LEASE}
        assert json.loads((tmp_path / LEASE).read_text())["token"] == lease.holder.token
        lease.check()
    assert files(tmp_path) == set()


def test_a_dead_run_that_nobody_has_buried_yet_is_replaced(
    tmp_path: Path, start: Callable[[], Participant]
) -> None:
    """In a container whose first process waits for nobody, killed processes stay as zombies."""
    first = start()
    assert first.ask("acquire", tmp_path) == "done"
    first.process.kill()
    os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)
    acquire(tmp_path).release()


def test_another_process_of_the_same_id_does_not_count(tmp_path: Path) -> None:
    """Ids come round again; a lease must not wait for whoever has got that of its holder."""
    with acquire(tmp_path):
        row = json.loads((tmp_path / LEASE).read_text())
    row["process"] |= {"pid": os.getppid(), "start": 1}
    (tmp_path / LEASE).write_text(json.dumps(row))
    acquire(tmp_path).release()


def test_a_silent_run_of_another_machine_keeps_its_directory_until_it_is_stolen(tmp_path: Path) -> None:
    """Nobody here can know whether it lives: a network that hangs must not make two writers."""
    left_by_another_host(tmp_path, started="2026-01-02T12:03:00+0100")
    long_ago = time.time() - 600
    os.utime(tmp_path / LEASE, (long_ago, long_ago))
    with pytest.raises(DirectoryInUse) as refused:
        acquire(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path}: in use by another run (process 123 of user x on host node17, job 77, since 2026-01-02 "
        "12:03, last sign of life 10 min ago); if it has ended take the directory over with --steal-lease, "
        "or give another with -o."
    )
    said: list[str] = []
    began = time.monotonic()
    lease = Lease.acquire(tmp_path, steal=True, environ={}, interval=BEAT, report=said.append)
    assert time.monotonic() - began > 3 * BEAT
    assert ["node17" in sentence and "sign of life" in sentence for sentence in said] == [True]
    with lease:
        lease.check()
        assert files(tmp_path) == {LEASE}


def test_a_job_that_its_scheduler_starts_anew_needs_no_option(tmp_path: Path) -> None:
    """When a node has failed nobody is there to give one; a job that was started twice is refused."""
    left_by_another_host(tmp_path)
    with acquire(tmp_path, SLURM_JOB_ID="77") as lease:
        lease.check()
        with pytest.raises(DirectoryInUse, match="gives signs of life"):
            acquire(tmp_path, SLURM_JOB_ID="77")
    left_by_another_host(tmp_path, job="")
    with pytest.raises(DirectoryInUse, match="in use"):
        acquire(tmp_path)


def test_the_longer_interval_of_the_two_counts(tmp_path: Path) -> None:
    """A thief in a hurry must not take the pause between two beats for death."""
    left_by_another_host(tmp_path, interval=0.5)
    began = time.monotonic()
    acquire(tmp_path, steal=True).release()
    assert time.monotonic() - began > 1.5


def test_a_lease_is_not_stolen_from_a_run_that_beats(
    tmp_path: Path, start: Callable[[], Participant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its beats alone, as if it were on another machine whose processes cannot be asked."""
    other = start()
    assert other.ask("acquire", tmp_path) == "done"
    monkeypatch.setattr("distrib.runtime.directory.lease._has_ended", lambda found: False)
    with pytest.raises(DirectoryInUse, match=f"process {other.process.pid} .* gives signs of life"):
        acquire(tmp_path, steal=True)
    assert other.ask("check", tmp_path) == "done"


def test_a_stopped_run_notices_on_waking_that_it_was_robbed(
    tmp_path: Path, start: Callable[[], Participant]
) -> None:
    """It would otherwise write its checkpoint over those of its successor."""
    sleeper = start()
    assert sleeper.ask("acquire", tmp_path) == "done"
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    with pytest.raises(InputError):
        acquire(tmp_path)
    with acquire(tmp_path, steal=True) as lease:
        held = (tmp_path / LEASE).stat().st_ino
        os.kill(sleeper.process.pid, signal.SIGCONT)
        answer = sleeper.ask("check", tmp_path)
        assert answer.startswith(
            f"RunError: {tmp_path}: was taken over by another run (process {os.getpid()} "
        )
        assert sleeper.ask("release", tmp_path) == "done"
        time.sleep(3 * BEAT)
        lease.check()
        assert (tmp_path / LEASE).stat().st_ino == held
        assert not lease.lost


def test_a_holder_that_was_robbed_knows_without_asking(tmp_path: Path) -> None:
    """Training on for days before the next checkpoint would be in vain."""
    lease = acquire(tmp_path)
    (tmp_path / LEASE).unlink()
    with acquire(tmp_path) as successor:
        wait_until(lambda: lease.lost)
        with pytest.raises(RunError, match="was taken over by another run"):
            lease.check()
        lease.release()
        successor.check()


def test_a_lease_that_is_just_being_taken_over_is_not_removed(tmp_path: Path) -> None:
    """The thief has shown who it is, but was stopped before it could give its lease the name."""
    lease = acquire(tmp_path)
    found = lease_file.lease_in_force(tmp_path)
    assert found is not None
    (tmp_path / "elsewhere").mkdir()
    row = left_by_another_host(tmp_path / "elsewhere", token="1" * 32)
    (tmp_path / found.successor).write_text(json.dumps(row))
    with pytest.raises(RunError, match=r"taken over by another run .process 123 of user x on host node17"):
        lease.check()
    lease.release()
    assert files(tmp_path) == {"elsewhere", LEASE, found.successor}
    with pytest.raises(InputError, match="node17"):
        acquire(tmp_path)


def test_a_lease_that_somebody_has_removed_is_lost(tmp_path: Path) -> None:
    with acquire(tmp_path) as lease:
        (tmp_path / LEASE).unlink()
        with pytest.raises(RunError, match=r"removed its lease\.json"):
            lease.check()
        assert lease.lost
    assert files(tmp_path) == set()


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 2048, b'{"token": "../../x"}', b"[" * 100_000])
def test_a_damaged_lease_of_nobody_known_is_only_stolen(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LEASE).write_bytes(content)
    with pytest.raises(DirectoryInUse, match=r"lease\.json does not say whose.*--steal-lease"):
        acquire(tmp_path)
    with acquire(tmp_path, steal=True) as lease:
        lease.check()
        assert files(tmp_path) == {LEASE}


def test_a_holder_mends_its_lease(tmp_path: Path) -> None:
    with acquire(tmp_path) as lease:
        (tmp_path / LEASE).write_bytes(b"")
        lease.check()
        wait_until(lambda: (tmp_path / LEASE).stat().st_size > 0)
        assert json.loads((tmp_path / LEASE).read_text())["token"] == lease.holder.token


def test_a_full_disk_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats that cannot be written still show in the time of the file."""
    write = os.pwrite

    def full_once_held(descriptor: int, data: bytes, place: int) -> int:
        if files(tmp_path) == {LEASE}:
            raise OSError(28, "No space left on device")
        return write(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", full_once_held)
    with acquire(tmp_path) as lease:
        before = (tmp_path / LEASE).stat()
        wait_until(lambda: (tmp_path / LEASE).stat().st_mtime_ns > before.st_mtime_ns)
        assert json.loads((tmp_path / LEASE).read_text())["beat"] == 1
        lease.check()
        assert not lease.lost


def test_no_space_for_a_lease_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match="no space left"):
        acquire(tmp_path)
    assert files(tmp_path) == set()


def test_it_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems of clouds: acquired, refused, replaced, given back."""

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    with acquire(tmp_path) as lease:
        assert files(tmp_path) == {LEASE}
        with pytest.raises(InputError):
            acquire(tmp_path)
        lease.check()
    left_by_another_host(tmp_path)
    with acquire(tmp_path, steal=True) as lease:
        wait_until(lambda: json.loads((tmp_path / LEASE).read_text())["beat"] > 3)
        lease.check()
    assert files(tmp_path) == set()


def test_a_link_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS sends a request again when it hears nothing, and then says that the file was there already."""
    link = os.link

    def twice(*names: Any) -> None:
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", twice)
    with acquire(tmp_path) as lease:
        lease.check()
        assert files(tmp_path) == {LEASE}
    left_by_another_host(tmp_path)
    acquire(tmp_path, steal=True).release()
    assert files(tmp_path) == set()


def test_a_lease_belongs_to_the_process_that_took_it(tmp_path: Path) -> None:
    """A worker that is forked and ends must not give the directory away."""
    with acquire(tmp_path) as lease:
        if (child := os.fork()) == 0:
            lease.release()
            os._exit(0)
        os.waitpid(child, 0)
        lease.check()


def test_a_server_that_does_not_answer_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with acquire(tmp_path) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(lease_file, "_read_once", fail)
            time.sleep(2 * BEAT)
            with pytest.raises(OSError, match="Input/output"):
                lease.check()
        assert not lease.lost
        lease.check()
