"""Saving checkpoints: what was the state at the moment of saving, agreed on by all, failures counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distrib.errors import PeerError, RunError
from distrib.runtime.checkpoints import commit as checkpoint_commit
from distrib.runtime.checkpoints import files as checkpoint_files
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.runtime.checkpoints.record import best, newest_first, newest_valid
from distrib.runtime.checkpoints.rows import read_rows
from distrib.runtime.checkpoints.store import CheckpointFacts, CheckpointStore
from distrib.runtime.checkpoints.writing import plain
from distrib.runtime.processes import Processes
from distrib.runtime.state import LocalState, Piece

from .checkpoint_states import Team, facts, saved, state, store_of, tensors

Writing = tuple[threading.Event, threading.Event]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Writing]:
    """Writing of files stops when the first event is cleared and says so with the second."""
    go_on, began = threading.Event(), threading.Event()
    write = checkpoint_commit.write_container

    def waiting(path: Path, content: Any) -> Any:
        began.set()
        assert go_on.wait(20)
        return write(path, content)

    monkeypatch.setattr(checkpoint_commit, "write_container", waiting)
    yield go_on, began
    go_on.set()


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Iterator[None]:
    def fail(path: Path, content: Any) -> Any:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_commit, "write_container", fail)
        yield


def left(directory: Path) -> set[str]:
    """What nobody should find in a run directory."""
    return {path.name for path in directory.iterdir() if path.name.startswith(".") or "replaced" in path.name}


@pytest.mark.parametrize("sharded", [False, True])
def test_the_state_saved_is_that_of_the_call(tmp_path: Path, held: Writing, sharded: bool) -> None:
    """Else a checkpoint written while training goes on would be of no step at all."""
    store = store_of(tmp_path, sharded=sharded)
    values = torch.ones(6)
    common = {"list": [1], "rng": torch.zeros(3, dtype=torch.uint8)}
    groups = [{"lr": 0.1}]
    local = LocalState(pieces={"weights/w": Piece(shape=(2, 3), start=0, values=values)}, groups=groups)
    store.save("step_00000001.ckpt", common, local, facts(1))
    values.zero_()
    common["list"].append(2)  # type: ignore[union-attr]
    common["rng"].add_(1)  # type: ignore[union-attr]
    groups[0]["lr"] = 0.2
    assert store.votes() == (0, 0)  # it is not waited for
    held[0].set()
    store.finish()
    reader = open_checkpoint(tmp_path / "step_00000001.ckpt")
    assert reader.tensor("weights/w").tolist() == [[1.0] * 3] * 2
    assert reader.common["list"] == [1]
    assert reader.common["rng"].tolist() == [0, 0, 0]
    assert reader.groups == [{"lr": 0.1}]


def test_a_second_save_waits_for_the_first(tmp_path: Path, held: Writing) -> None:
    """Else its copy would overwrite what is being written."""
    store = store_of(tmp_path)
    store.save("step_00000001.ckpt", {}, state(1), facts(1))
    second = threading.Thread(target=saved, args=(store, 2))
    second.start()
    assert held[1].wait(20)
    second.join(0.05)
    assert second.is_alive()
    held[0].set()
    second.join(20)
    for step in (1, 2):
        reader = open_checkpoint(tmp_path / f"step_{step:08d}.ckpt")
        assert torch.equal(reader.tensor("weights/layer.bias"), tensors(step)["weights/layer.bias"])


@pytest.mark.parametrize("sharded", [False, True])
def test_processes_save_and_agree(tmp_path: Path, sharded: bool) -> None:
    """Else processes would count different saves as done, and one would wait for ever."""

    def work(processes: Processes) -> int:
        rank, size = processes.topology.rank, processes.topology.world_size
        store = store_of(tmp_path, sharded=sharded, processes=processes)
        for step in (1, 2):
            path = tmp_path / f"step_{step:08d}.ckpt"
            local = state(step, rank=rank, world_size=size) if sharded else state(step)
            store.save(path.name, {"step": step}, local, facts(step))
            # What training does at each step boundary.
            while not all(processes.gather(path.exists())):
                written, failed = processes.sum(store.votes())
                store.settle(int(written), int(failed))
        store.finish()
        return store.failures

    assert Team(3).run(work) == [0] * 3
    reader = open_checkpoint(tmp_path / "step_00000002.ckpt")
    assert reader.world_size == (3 if sharded else 1)
    for key, tensor in tensors(2).items():
        assert torch.equal(reader.tensor(key), tensor)
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step_00000002.ckpt")
    assert list(read_rows(tmp_path)) == ["step_00000001.ckpt", "step_00000002.ckpt"]
    assert left(tmp_path) == set()


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_one_process_that_fails_fails_the_save_for_all(
    tmp_path: Path, culprit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a folder without one of its parts would count, or processes would disagree about it."""
    write = checkpoint_commit.write_container
    broken = [f"part_{culprit}_of_3.ckpt"]

    def write_or_fail(path: Path, content: Any) -> Any:
        if path.name in broken:
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(checkpoint_commit, "write_container", write_or_fail)
    events: list[tuple[str, dict[str, Any]]] = []

    def work(processes: Processes) -> list[int]:
        rank = processes.topology.rank
        store = store_of(
            tmp_path, sharded=True, processes=processes, on_event=lambda *each: events.append(each)
        )
        failures = []
        for step in (1, 2):
            store.save(
                f"step_{step:08d}.ckpt",
                {},
                state(step, rank=rank, world_size=3),
                facts(step),
                background=False,
            )
            failures.append(store.failures)
        if rank == 0:
            broken.clear()
        processes.part()
        store.save("step_00000003.ckpt", {}, state(3, rank=rank, world_size=3), facts(3))
        store.finish()
        return [*failures, store.failures]

    assert Team(3).run(work) == [[1, 2, 0]] * 3
    assert [kind for kind, _ in events] == ["save_failed", "save_failed", "save"]
    assert "no space left" in events[0][1]["reason"]
    assert newest_valid(tmp_path, report=pytest.fail) == tmp_path / "step_00000003.ckpt"
    assert [each.path.name for each in newest_first(tmp_path)] == ["step_00000003.ckpt"]
    assert left(tmp_path) == set()


def test_finish_says_where_the_last_save_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run would end well without its last state."""

    def work(processes: Processes) -> None:
        store = store_of(tmp_path, processes=processes)
        store.save("step_00000001.ckpt", {}, state(1), facts(1))
        store.finish()

    with failing(monkeypatch, OSError(28, "No space left on device")):
        first, other = Team(2).run(work)
    assert isinstance(first, RunError)
    assert f"ketos train --resume {tmp_path}" in str(first)
    assert "no space left" in str(first)
    assert isinstance(other, PeerError)


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), RuntimeError("unexpected"), MemoryError()]
)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_failed_save_leaves_the_ones_before(
    tmp_path: Path, error: Exception, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a full disk would cost more than the checkpoint that does not fit."""
    events: list[tuple[str, dict[str, Any]]] = []
    store = store_of(tmp_path, sharded=sharded, on_event=lambda *each: events.append(each))
    saved(store, 1)
    with failing(monkeypatch, error):
        saved(store, 2)
        assert store.failures == 1
    assert left(tmp_path) == set()
    assert events[-1][0] == "save_failed"
    assert newest_valid(tmp_path, report=pytest.fail) == tmp_path / "step_00000001.ckpt"
    saved(store, 2)
    assert store.failures == 0
    store.finish()
    assert newest_valid(tmp_path, report=pytest.fail) == tmp_path / "step_00000002.ckpt"


def test_what_the_disk_gives_back_otherwise_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the checkpoint before would be removed for one that cannot be read."""
    from distrib.runtime.checkpoints import writing as checkpoint_writing

    store = store_of(tmp_path, keep_last=1)
    saved(store, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writing, "file_checksum", lambda path: 0)
        saved(store, 2)
    assert store.failures == 1
    with pytest.raises(RunError, match="does not give back"):
        store.finish()
    assert [each.path.name for each in newest_first(tmp_path)] == ["step_00000001.ckpt"]


def test_nothing_takes_its_name_without_the_lease(tmp_path: Path) -> None:
    """Else a run that was taken for dead would write among the checkpoints of its successor."""

    def lost() -> None:
        raise RunError("the lease is lost")

    store = store_of(tmp_path, guard=lost)
    saved(store, 1)
    assert newest_first(tmp_path) == []
    with pytest.raises(RunError, match="the lease is lost"):
        store.finish()
    assert left(tmp_path) == set()


@pytest.mark.parametrize("sharded", [False, True])
def test_the_best_and_the_last_are_kept(tmp_path: Path, sharded: bool) -> None:
    """Else the disk would fill, or the best model be lost."""
    events: list[tuple[str, dict[str, Any]]] = []
    store = store_of(
        tmp_path, sharded=sharded, keep_best=1, keep_last=2, on_event=lambda *each: events.append(each)
    )
    for step, score in enumerate([0.3, 0.90001, 0.90002, 0.5, None, None]):
        saved(store, step, score)
    found = {path.name for path in tmp_path.glob("*.ckpt")}
    assert found == {"checkpoint_02-0.9000.ckpt", "step_00000004.ckpt", "step_00000005.ckpt", "last.ckpt"}
    assert best(tmp_path)[0].score == 0.90002
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step_00000005.ckpt")
    assert sum(len(each["names"]) for kind, each in events if kind == "pruned") == 3
    assert set(read_rows(tmp_path)) == found - {"last.ckpt"}


def test_of_equal_scores_the_later_is_best(tmp_path: Path) -> None:
    """Else an export would differ from what early stopping calls best."""
    store = store_of(tmp_path)
    saved(store, 1, 0.5)
    saved(store, 2, 0.5)
    saved(store, 3)
    assert [each.step for each in best(tmp_path)] == [2, 1]
    (tmp_path / "checkpoints.jsonl").unlink()
    assert [each.step for each in best(tmp_path)] == [2, 1]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_name_is_taken_over_from_file_or_folder(tmp_path: Path, before: bool, after: bool) -> None:
    """Else a run resumed from an older checkpoint, or with another strategy, could not save again."""
    for sharded in (before, after):
        store = store_of(tmp_path, sharded=sharded)
        saved(store, 1)
        store.finish()
    assert (tmp_path / "step_00000001.ckpt").is_dir() == after
    assert open_checkpoint(tmp_path / "last.ckpt").facts == facts(1)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("sharded", [False, True])
def test_without_links_last_is_a_copy(tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else file systems without links could not hold a run."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint_files.os, "link", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    store = store_of(tmp_path, sharded=sharded)
    for step in (1, 2):
        saved(store, step)
        assert open_checkpoint(tmp_path / "last.ckpt").facts == facts(step)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("sharded", [False, True])
def test_saving_alone_asks_nobody(tmp_path: Path, sharded: bool) -> None:
    """Else the emergency checkpoint would wait for processes that are gone."""

    class Unwilling(Processes):
        def sum(self, numbers: Any) -> Any:
            raise AssertionError

        gather = part = sum  # type: ignore[assignment]

        def on_first(self, function: Callable[[], Any]) -> Any:
            return function()

    from distrib.runtime.topology import Topology

    topology = Topology(rank=0, world_size=2, local_world_size=2)
    abort = CheckpointFacts(kind="abort", step=7, epoch=0, score=None)
    store = store_of(tmp_path, sharded=sharded, processes=Unwilling(topology))
    if sharded:
        with pytest.raises(RunError, match="each holds a part"):
            store.save_alone("checkpoint_abort.ckpt", {}, state(7), abort)
        return
    store.save("step_00000001.ckpt", {}, state(1), facts(1))
    store.save_alone("checkpoint_abort.ckpt", {"a": 1}, state(7), abort)
    store.close()
    assert open_checkpoint(tmp_path / "checkpoint_abort.ckpt").facts == abort
    assert open_checkpoint(tmp_path / "step_00000001.ckpt").facts == facts(1)
    assert newest_valid(tmp_path, report=pytest.fail) == tmp_path / "checkpoint_abort.ckpt"


def test_the_emergency_checkpoint_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    """Else it would push out a good one, or go before anybody has looked at it."""
    store = store_of(tmp_path, keep_best=1, keep_last=1)
    saved(store, 1)
    abort = CheckpointFacts(kind="abort", step=1, epoch=0, score=None)
    store.save_alone("checkpoint_abort.ckpt", {}, state(1), abort)
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step_00000001.ckpt")
    for step in (2, 3):
        saved(store, step)
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {
        "checkpoint_abort.ckpt",
        "step_00000003.ckpt",
        "last.ckpt",
    }


def test_what_a_checkpoint_could_not_give_back_is_refused_at_once(tmp_path: Path) -> None:
    """Else a run would find out at its resume."""
    store: CheckpointStore = store_of(tmp_path)
    with pytest.raises(TypeError, match=r"common\['a'\]\[0\] is a set"):
        store.save("step_00000001.ckpt", {"a": [{1}]}, state(1), facts(1))
    store.finish()
    assert newest_first(tmp_path) == []


def test_values_of_other_libraries_become_plain() -> None:
    """Else a learning rate that numpy computed would make a checkpoint unreadable."""
    value = {"a": np.float64(0.5), "b": (1, [True, None, "x"]), "c": torch.ones(2, requires_grad=True)}
    copy = plain(value)
    assert type(copy["a"]) is float
    assert copy["b"] == (1, [True, None, "x"])
    assert not copy["c"].requires_grad
    assert copy["c"].data_ptr() != value["c"].data_ptr()  # type: ignore[union-attr]


def test_the_next_run_records_what_the_last_could_not(tmp_path: Path) -> None:
    """Else a checkpoint whose run was killed before its row would be neither exported nor removed."""
    store = store_of(tmp_path)
    saved(store, 1, 0.25)
    saved(store, 2, 0.75)
    rows = (tmp_path / "checkpoints.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "checkpoints.jsonl").write_text(rows[0])
    assert [each.score for each in best(tmp_path)] == [0.75, 0.25]
    store_of(tmp_path)
    recorded = read_rows(tmp_path)["checkpoint_02-0.7500.ckpt"]
    assert recorded.facts == facts(2, 0.75)
    open_checkpoint(tmp_path / "checkpoint_02-0.7500.ckpt")


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    """Else a user's own copy of a checkpoint would be removed with the run's."""
    store = store_of(tmp_path, keep_best=1, keep_last=1)
    mine = saved(store, 1, 0.1).rename(tmp_path / "mine.ckpt")
    (tmp_path / ".notes.part").touch()
    store = store_of(tmp_path, keep_best=1, keep_last=1)
    for step in range(2, 5):
        saved(store, step, step / 10)
    assert mine.exists()
    assert (tmp_path / ".notes.part").exists()


def test_last_follows_a_checkpoint_whose_run_was_killed_before_it_did(tmp_path: Path) -> None:
    """A run with nothing left to do would leave an older state under that name for good."""
    store = store_of(tmp_path)
    older, newest = saved(store, 1, 0.25), saved(store, 2, 0.75)
    last = tmp_path / "last.ckpt"
    last.unlink()
    last.hardlink_to(older)
    store_of(tmp_path)
    assert last.samefile(newest)
