"""The record of a run's checkpoints: which is newest, which best, which may go."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.runtime.checkpoints.record import go_on_from, newest_first, to_remove
from distrib.runtime.checkpoints.rows import (
    RECORD,
    CheckpointFacts,
    CheckpointRow,
    append_row,
    read_rows,
)

from .checkpoint_states import saved, store_of

KINDS = ("validation", "interval", "stop", "abort")


def row(name: str, *, kind: str = "interval", step: int = 0, score: float | None = None) -> CheckpointRow:
    return CheckpointRow(
        name=name,
        facts=CheckpointFacts(kind=kind, step=step, epoch=0, score=score),  # type: ignore[arg-type]
        bytes=1,
        digest="",
        strategy="",
        world_size=1,
        stall_ms=0.0,
        seconds=0.0,
        time=0.0,
    )


def recorded(directory: Path, *rows: CheckpointRow, present: bool = True) -> None:
    for each in rows:
        append_row(directory, each.json())
        if present:
            (directory / each.name).write_bytes(b"x")


def names(directory: Path) -> list[str]:
    return [each.path.name for each in newest_first(directory)]


rows_of_a_run = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from([None, 0.1, 0.5, 0.5001, 0.9])), max_size=12
).map(
    lambda drawn: [
        row(f"{number}.ckpt", kind=kind, step=number, score=score)
        for number, (kind, score) in enumerate(drawn)
    ]
)


@given(rows_of_a_run, st.integers(1, 4), st.integers(1, 4))
def test_what_is_kept_is_the_best_and_the_last(
    rows: list[CheckpointRow], keep_best: int, keep_last: int
) -> None:
    """Else a run's best model, or the state to go on from, would be deleted; or the disk would fill."""
    gone = set(to_remove(rows, keep_best=keep_best, keep_last=keep_last))
    kept = [each for each in rows if each.name not in gone]
    regular = [each for each in rows if each.facts.kind != "abort"]
    assert {each.name for each in rows if each.facts.kind == "abort"}.isdisjoint(gone)
    assert {each.name for each in regular[-keep_last:]}.isdisjoint(gone)
    scored = [each for each in rows if each.facts.kind == "validation" and each.facts.score is not None]
    by_score = sorted(scored, key=lambda each: (each.facts.score, each.facts.step), reverse=True)
    assert {each.name for each in by_score[:keep_best]}.isdisjoint(gone)
    assert len([each for each in kept if each.facts.kind != "abort"]) <= keep_best + keep_last
    # Removing what may go leaves nothing more to remove.
    assert to_remove(kept, keep_best=keep_best, keep_last=keep_last) == []


def test_protected_names_stay() -> None:
    """Else last.ckpt would point nowhere."""
    rows = [row("a.ckpt"), row("b.ckpt"), row("c.ckpt")]
    assert to_remove(rows, keep_best=1, keep_last=1) == ["a.ckpt", "b.ckpt"]
    assert to_remove(rows, keep_best=1, keep_last=1, protected=["a.ckpt"]) == ["b.ckpt"]


def test_newest_is_what_was_written_last_whatever_its_step(tmp_path: Path) -> None:
    """Else a run resumed from an older checkpoint would jump back to the branch it had left."""
    recorded(tmp_path, row("a.ckpt", step=1), row("b.ckpt", step=9), row("c.ckpt", step=2))
    assert names(tmp_path) == ["c.ckpt", "b.ckpt", "a.ckpt"]
    recorded(tmp_path, row("a.ckpt", step=1))  # written again
    assert names(tmp_path) == ["a.ckpt", "c.ckpt", "b.ckpt"]


def test_removed_and_missing_checkpoints_are_not_there(tmp_path: Path) -> None:
    """Else a run would try to resume from what retention removed."""
    recorded(tmp_path, row("a.ckpt"), row("b.ckpt"), row("c.ckpt"))
    append_row(tmp_path, {"removed": "b.ckpt", "time": 1.0})
    (tmp_path / "b.ckpt").unlink()
    (tmp_path / "c.ckpt").unlink()
    assert names(tmp_path) == ["a.ckpt"]


def test_a_checkpoint_without_a_row_stands_where_its_time_puts_it(tmp_path: Path) -> None:
    """Else a run killed between the renaming and the row would lose its newest checkpoint."""
    recorded(tmp_path, row("a.ckpt"), row("b.ckpt"))
    for number, name in enumerate(["a.ckpt", "between.ckpt", "b.ckpt", "newest.ckpt"]):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (number, number))
    assert names(tmp_path) == ["newest.ckpt", "b.ckpt", "between.ckpt", "a.ckpt"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_last_counts_only_where_its_target_has_lost_its_name(tmp_path: Path, link: object) -> None:
    """Else every checkpoint would be tried twice, or the last way back would be passed over."""
    recorded(tmp_path, row("a.ckpt"))
    link(tmp_path / "a.ckpt", tmp_path / "last.ckpt")  # type: ignore[operator]
    assert names(tmp_path) == ["a.ckpt"]
    (tmp_path / "a.ckpt").unlink()
    assert names(tmp_path) == (["last.ckpt"] if link is os.link else [])


def test_a_torn_row_costs_only_itself(tmp_path: Path) -> None:
    """Else a crash while a row is written would make the whole record unreadable, or swallow the next row."""
    recorded(tmp_path, row("a.ckpt"), row("b.ckpt"))
    whole = (tmp_path / RECORD).read_bytes()
    for cut in range(0, len(whole), 7):
        (tmp_path / RECORD).write_bytes(whole[:cut])
        append_row(tmp_path, row("c.ckpt").json())
        found = list(read_rows(tmp_path))
        assert found[-1] == "c.ckpt"
        assert set(found) <= {"a.ckpt", "b.ckpt", "c.ckpt"}
        # Cut at the very end of a row, it is whole but for its newline.
        assert ("a.ckpt" in found) == (cut >= len(whole.split(b"\n")[0]))


@pytest.mark.parametrize(
    "values",
    [
        {"name": "../a.ckpt"},
        {"name": "/etc/passwd"},
        {"name": ".."},
        {"name": "a\0b"},
        {"name": 3},
        {"step": -1},
        {"step": True},
        {"kind": "other"},
        {"bytes": "many"},
        {"digest": None},
    ],
)
def test_rows_that_are_none_are_passed_over(tmp_path: Path, values: dict[str, object]) -> None:
    """Else a record from elsewhere could have files outside of the directory read or removed."""
    append_row(tmp_path, {**row("a.ckpt").json(), **values})
    (tmp_path / RECORD).open("a").write('[1, 2]\n"x"\n' + "[" * 5000 + "\n\xff\n")
    assert read_rows(tmp_path) == {}


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    """Else digests and exact scores would be lost."""
    written = row("a.ckpt", kind="validation", step=7, score=0.1 + 0.2)
    recorded(tmp_path, written)
    assert read_rows(tmp_path) == {"a.ckpt": written}
    assert set(json.loads((tmp_path / RECORD).read_text())) >= {"name", "kind", "step", "score", "digest"}


def test_what_was_written_after_the_checkpoint_gone_on_from_is_history(tmp_path: Path) -> None:
    """Else a run killed before its first new save would go on in the history that it had left."""
    store = store_of(tmp_path)
    older, newer = saved(store, 1, 0.25), saved(store, 2, 0.75)
    go_on_from(older)
    assert [each.path for each in newest_first(tmp_path)] == [older, newer]
    go_on_from(tmp_path / "last.ckpt")
    assert [each.path for each in newest_first(tmp_path)] == [newer, older]
    rows = (tmp_path / "checkpoints.jsonl").read_bytes()
    go_on_from(newer)
    assert (tmp_path / "checkpoints.jsonl").read_bytes() == rows
