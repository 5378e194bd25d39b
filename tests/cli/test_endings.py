"""Every way to fail leaves its cause and sentence for the launcher, and none where no launcher asked."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from distrib.cli.endings import cause_of
from distrib.cli.main import ketos
from distrib.errors import (
    DirectoryInUse,
    InputError,
    OutOfMemory,
    PeerError,
    PeerLost,
    Preempted,
    RunError,
    TimeoutReached,
    Unexpected,
)
from distrib.runtime.directory.endings import ATTEMPT_VARIABLE, Ending, EndingCause, read_endings

CAUSES: list[tuple[BaseException, int, EndingCause]] = [
    (InputError("a file."), 2, "input"),
    (DirectoryInUse("in use by another."), 2, "busy"),
    (RunError("a run."), 1, "run"),
    (Unexpected("an illegal memory access."), 1, "unexpected"),
    (Preempted("a signal.", 12), 140, "preempted"),
    (PeerError(0, 140), 140, "preempted"),
    (PeerError(0, 2), 2, "peer"),
    (PeerLost("a peer."), 1, "peer"),
    (TimeoutReached("too long."), 1, "timeout"),
    (OutOfMemory("memory."), 1, "memory"),
    (MemoryError(), 1, "memory"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), 1, "memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "memory"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "run"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "run"),
    (PermissionError(errno.EACCES, "Permission denied", "there"), 2, "input"),
    (FileNotFoundError("there"), 2, "input"),
    (KeyboardInterrupt(), 130, "preempted"),
    (SystemExit(143), 143, "preempted"),
    (click.exceptions.Exit(3), 3, "run"),
    (ZeroDivisionError("division by zero"), 1, "unexpected"),
]

PASSING = [
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ECONNRESET,
    errno.EREMOTEIO,
    errno.EAGAIN,
    errno.ENOTCONN,
    errno.ENOBUFS,
    errno.EIO,
]
NAMED_BADLY = [
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
]


@contextmanager
def failing(error: BaseException) -> Iterator[None]:
    """A command of the group that ends with ``error``."""

    @click.command("fail")
    def fail() -> None:
        raise error

    ketos.add_command(fail)
    try:
        yield
    finally:
        del ketos.commands["fail"]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an attempt, in which this process is the second of two."""
    monkeypatch.setenv(ATTEMPT_VARIABLE, str(tmp_path))
    place = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path


@pytest.mark.parametrize(
    ("error", "code", "cause"), CAUSES, ids=[f"{type(error).__name__} {cause}" for error, _, cause in CAUSES]
)
def test_what_ends_a_process_is_left_for_its_launcher(
    attempt: Path, error: BaseException, code: int, cause: EndingCause
) -> None:
    """Broken: the launcher retries what cannot succeed, or gives up on what would."""
    with failing(error):
        result = CliRunner().invoke(ketos, ["fail"], prog_name="ketos")
    assert result.exit_code == code
    assert cause_of(error) == cause
    ending = read_endings(attempt)[1]
    expected = Ending(
        rank=1,
        host=socket.gethostname(),
        pid=os.getpid(),
        exit_code=code,
        cause=cause,
        sentence=ending.sentence,
    )
    assert ending == expected
    printed = result.output.removeprefix("Error: ").strip()
    if printed.endswith(".") and not isinstance(error, KeyboardInterrupt):
        assert ending.sentence == printed


@pytest.mark.parametrize(
    ("number", "code", "cause"),
    [
        *((each, 1, "unexpected") for each in PASSING),
        *((each, 2, "input") for each in NAMED_BADLY),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) and value > 2 else None,
)
def test_what_a_file_server_does_once_is_no_bad_input(
    attempt: Path, number: int, code: int, cause: EndingCause
) -> None:
    """Broken: a run of days ends for good because its file server was away for a minute."""
    with failing(OSError(number, os.strerror(number), "there")):
        result = CliRunner().invoke(ketos, ["fail"], prog_name="ketos")
    assert (result.exit_code, read_endings(attempt)[1].cause) == (code, cause)
    assert ("check its name" in result.output) == (code == 2)


@pytest.mark.parametrize(
    "words",
    [
        ["--frobnicate", "train"],
        ["nonsense"],
        ["train", "--frobnicate"],
        ["train", "-N", "many"],
        ["train"],
        ["--config", "nowhere.yml", "train", "x"],
        [],
    ],
    ids=" ".join,
)
def test_bad_usage_is_input(attempt: Path, words: list[str]) -> None:
    """Broken: a launcher starts a job again that no number of attempts can save."""
    result = CliRunner().invoke(ketos, words, prog_name="ketos")
    assert result.exit_code == 2
    assert read_endings(attempt)[1].cause == "input"


def test_a_rank_that_does_not_know_its_place_leaves_an_ending_too(
    attempt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    result = CliRunner().invoke(ketos, ["nonsense"], prog_name="ketos")
    assert result.exit_code == 2
    assert list(read_endings(attempt)) == [1]


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["sample", "made"]])
def test_a_process_that_ends_well_leaves_nothing(
    attempt: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(attempt)
    result = CliRunner().invoke(ketos, words, prog_name="ketos")
    assert result.exit_code == 0
    assert read_endings(attempt) == {}


def test_nothing_is_left_where_no_launcher_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ATTEMPT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with failing(RunError("a run.")):
        assert CliRunner().invoke(ketos, ["fail"], prog_name="ketos").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_whose_folder_is_gone_does_not_change_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ATTEMPT_VARIABLE, str(tmp_path / "gone"))
    with failing(RunError("a run.")):
        result = CliRunner().invoke(ketos, ["fail"], prog_name="ketos")
    assert (result.exit_code, result.output) == (1, "Error: a run.\n")
