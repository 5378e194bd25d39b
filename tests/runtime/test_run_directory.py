"""One run a directory, and nothing left in it by a run that never began."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.errors import InputError, PeerError, RunError
from distrib.runtime.directory.lease_file import LEASE
from distrib.runtime.directory.run_directory import claim, holds_checkpoints


def fail(
    directory: Path,
    error: BaseException,
    *,
    resuming: bool = False,
    begun: bool = False,
    before: Callable[[], object] = lambda: None,
) -> None:
    """A run that ends with ``error`` after it has written something."""
    with claim(directory, resuming=resuming, environ={}) as run:
        (directory / "data").mkdir()
        (directory / "data" / "training.arrow").write_bytes(b"x")
        (directory / "events.jsonl").write_text("{}\n")
        if begun:
            run.begun()
        before()
        raise error


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_lease_is_held_for_the_block(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claim(run, resuming=False, environ={}) as claimed:
        claimed.check()
        assert names(run) == {LEASE}
        with pytest.raises(InputError, match="in use by another run"), claim(run, resuming=True, environ={}):
            pytest.fail("two runs in one directory")
        (run / "last.ckpt").write_bytes(b"x")
    assert names(run) == {"last.ckpt"}


def test_a_refused_second_run_takes_nothing_away(tmp_path: Path) -> None:
    """What it finds is what the first has made before its first checkpoint."""
    run = tmp_path / "run"
    with claim(run, resuming=False, environ={}) as claimed:
        (run / "experiment.yml").write_text("x")
        with pytest.raises(InputError):
            fail(run, InputError("never comes so far"))
        assert names(run) == {LEASE, "experiment.yml"}
        claimed.check()


@pytest.mark.parametrize("error", [InputError("no lines"), PeerError(1, 2)], ids=["input", "input of a peer"])
def test_unusable_input_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    """Else the next try would find a directory that is none of its own, or empty folders would gather."""
    with pytest.raises(type(error)):
        fail(tmp_path / "new" / "run", error)
    assert names(tmp_path) == set()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("x")
    with pytest.raises(type(error)):
        fail(tmp_path / "kept", error)
    assert names(tmp_path / "kept") == {"notes.txt"}


def test_what_others_put_beside_it_meanwhile_stays(tmp_path: Path) -> None:
    def other() -> None:
        (tmp_path / "new" / "theirs").mkdir()

    with pytest.raises(InputError):
        fail(tmp_path / "new" / "run", InputError("no lines"), before=other)
    assert names(tmp_path / "new") == {"theirs"}


@pytest.mark.parametrize("error", [RunError("no memory"), PeerError(1, 1), ValueError(), KeyboardInterrupt()])
def test_other_errors_leave_what_there_is(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        fail(tmp_path / "run", error)
    assert names(tmp_path / "run") == {"data", "events.jsonl"}


def test_a_run_that_has_begun_keeps_everything(tmp_path: Path) -> None:
    """A bad line found on the third day must not take the record of the days away."""
    with pytest.raises(InputError):
        fail(tmp_path / "run", InputError("too many bad lines"), begun=True)
    assert names(tmp_path / "run") == {"data", "events.jsonl"}


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize(
    "name", ["checkpoint_00-0.5000.ckpt", "step_00000123.ckpt", "last.ckpt", "checkpoint_abort.ckpt"]
)
def test_checkpoints_are_never_written_over_or_removed(name: str, kind: str, tmp_path: Path) -> None:
    """Those of sharded strategies are folders, and last.ckpt may lead to one that is gone."""
    run, saved = tmp_path / "run", tmp_path / "run" / name

    def save() -> None:
        if kind == "file":
            saved.write_bytes(b"precious")
        elif kind == "folder":
            saved.mkdir()
        else:
            saved.symlink_to("gone")

    with pytest.raises(InputError):
        fail(run, InputError("too late"), before=save)
    assert names(run) == {"data", "events.jsonl", name}
    assert holds_checkpoints(run)
    with pytest.raises(InputError, match="holds the checkpoints of another run; continue it with `--resume"):
        fail(run, InputError("never comes so far"))
    assert names(run) == {"data", "events.jsonl", name}
    with claim(run, resuming=True, environ={}):
        pass


def test_what_is_no_checkpoint_is_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("best_0.9.safetensors", ".last.ckpt.0abc.part", "notes.ckpt"):
        (tmp_path / name).write_bytes(b"x")
    assert not holds_checkpoints(tmp_path)
    assert not holds_checkpoints(tmp_path / "missing")
    with claim(tmp_path, resuming=False, environ={}):
        pass


def test_a_run_that_was_robbed_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new in the directory may be its successor's."""
    monkeypatch.setattr("distrib.runtime.directory.lease._TRY_AGAIN", ())

    def rob() -> None:
        (tmp_path / "run" / LEASE).unlink()

    def check_after(claimed_path: Path) -> None:
        with claim(claimed_path, resuming=False, environ={}) as run:
            (claimed_path / "theirs").write_bytes(b"x")
            rob()
            with pytest.raises(RunError):
                run.check()
            raise InputError("no lines")

    with pytest.raises(InputError, match="no lines"):
        check_after(tmp_path / "run")
    assert names(tmp_path / "run") == {"theirs"}


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be made a run directory"):
            fail(path, InputError("never comes so far"))
