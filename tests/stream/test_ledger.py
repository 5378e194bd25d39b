"""The ledger: what a run has on record survives kills, and its check finds what was lost or repeated."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distrib.errors import InputError, RunError
from distrib.stream.ledger import LedgerFile, LedgerWriter, next_segment, write_expected
from distrib.stream.ledger_report import EpochReport, LedgerReport, SegmentPart, verify_ledger

LINES = 10
STEPS = 5  # an epoch, of two lines each
EXPECTED = np.arange(3, 3 + LINES)


def epoch_order(epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(EXPECTED)


def write_segment(
    directory: Path, *, start: int, stop: int, world_size: int = 1, behind: Sequence[int] = ()
) -> list[Path]:
    """Do steps ``start`` to ``stop`` - 1; ranks in ``behind`` were killed before the record of the last."""
    segment = next_segment(directory)
    write_expected(directory, EXPECTED, total=20, segment=segment)
    paths = []
    for rank in range(world_size):
        with LedgerWriter(
            directory, segment=segment, rank=rank, world_size=world_size, start_step=start, lines=LINES
        ) as writer:
            for step in range(start, stop - (rank in behind)):
                epoch, place = divmod(step, STEPS)
                lines = epoch_order(epoch)[2 * place : 2 * place + 2][rank::world_size]
                writer.append(step=step, epoch=epoch, lines=lines, last=place == STEPS - 1)
            writer.sync()
            paths.append(writer.path)
    return paths


def check(directory: Path) -> LedgerReport:
    return verify_ledger(directory)


def only(directory: Path, epoch: int = 0) -> EpochReport:
    (report,) = verify_ledger(directory, epoch).epochs
    return report


def test_an_epoch_done_in_one_go_is_exact(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=10, world_size=2)
    report = check(tmp_path)
    assert report.exact
    assert not report.problems
    assert [epoch.complete for epoch in report.epochs] == [True, True]
    assert report.epochs[1].segments == (SegmentPart(segment=1, world_size=2, first_step=5, last_step=9),)
    assert (report.epochs[0].lines, report.epochs[0].steps, report.epochs[0].expected) == (10, 5, 10)


def test_work_after_the_last_checkpoint_is_done_again_and_no_repetition(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=4, world_size=2)
    write_segment(tmp_path, start=2, stop=5)
    report = only(tmp_path)
    assert report.complete
    assert [(part.world_size, part.first_step, part.last_step) for part in report.segments] == [
        (2, 0, 1),
        (1, 2, 4),
    ]


def test_a_segment_resumed_from_an_older_checkpoint_takes_the_place_of_those_between(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=5)
    write_segment(tmp_path, start=4, stop=5)
    write_segment(tmp_path, start=1, stop=5)
    assert only(tmp_path).complete
    assert [part.segment for part in only(tmp_path).segments] == [1, 3]


def test_a_segment_killed_before_its_first_step_changes_nothing(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=4)
    write_segment(tmp_path, start=3, stop=3, world_size=4)
    write_segment(tmp_path, start=4, stop=5)
    assert only(tmp_path).complete
    assert [part.segment for part in only(tmp_path).segments] == [1, 3]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(0, 4), st.booleans()), max_size=6)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_kills_and_resumes_at_any_size_leave_an_exact_ledger(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int, int, bool]]
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    saved, world_size = 0, 1
    for world_size, done, kept, torn in kills:
        # The checkpoint a segment leaves is at most at the last step that all its processes did.
        stop = min(saved + done, 2 * STEPS)
        paths = write_segment(directory, start=saved, stop=stop, world_size=world_size)
        if torn and stop > saved:
            with paths[-1].open("r+b") as file:
                file.truncate(paths[-1].stat().st_size - 3)
            stop -= 1
        saved = min(saved + kept, stop)
    write_segment(directory, start=saved, stop=2 * STEPS, world_size=world_size)
    report = check(directory)
    assert report.exact
    assert [epoch.complete for epoch in report.epochs] == [True, True]
    assert not report.problems


def test_an_epoch_under_way_has_lost_nothing(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=8)
    first, second = check(tmp_path).epochs
    assert first.complete
    assert second.under_way
    assert second.exact
    assert not second.complete
    assert (second.lines, second.lost.count) == (6, 0)


def test_a_step_that_not_all_processes_have_does_not_count(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=4, world_size=2, behind=[1])
    report = only(tmp_path)
    assert report.under_way
    assert (report.steps, report.lines) == (3, 6)


def test_a_step_that_was_begun_and_never_ended_is_not_the_beginning_of_an_epoch(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=6, world_size=2, behind=[0])
    assert [epoch.epoch for epoch in check(tmp_path).epochs] == [0]
    assert only(tmp_path).complete


def test_lost_lines_are_named(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=3)
    write_segment(tmp_path, start=4, stop=5)
    report = only(tmp_path)
    assert not report.exact
    assert report.lost.first == tuple(sorted(epoch_order(0)[6:8].tolist()))
    assert not check(tmp_path).exact


def test_lines_lost_in_an_earlier_epoch_are_lost_even_without_its_last_step(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=3)
    write_segment(tmp_path, start=5, stop=6)
    assert [epoch.lost.count for epoch in check(tmp_path).epochs] == [4, 0]


def one_file(directory: Path, steps: Sequence[Sequence[int]], bad: Sequence[int] = ()) -> Path:
    write_expected(directory, EXPECTED, total=20)
    with LedgerWriter(directory, segment=1, rank=0, world_size=1, start_step=0, lines=LINES) as writer:
        for step, lines in enumerate(steps):
            last = step == len(steps) - 1
            writer.append(
                step=step,
                epoch=0,
                lines=np.array(lines, dtype=np.int64),
                bad=np.array(bad if last else [], dtype=np.int64),
                last=last,
            )
    return writer.path


def test_repeated_and_foreign_lines_are_named(tmp_path: Path) -> None:
    one_file(tmp_path, [range(3, 8), [3, 3, *range(8, 13)], [4, 15, 2, 99]])
    report = only(tmp_path)
    assert report.repeated.first == (3, 4)
    assert report.foreign.first == (2, 15, 99)
    assert report.lost.count == 0
    assert not report.exact


def test_a_line_repeated_many_times_is_not_taken_for_one_never_seen(tmp_path: Path) -> None:
    one_file(tmp_path, [[3] * 256, [*range(4, 13)]])
    report = only(tmp_path)
    assert (report.lost.count, report.repeated.first) == (0, (3,))


def test_unusable_lines_are_neither_lost_nor_trained_on(tmp_path: Path) -> None:
    one_file(tmp_path, [range(3, 11)], bad=[11, 12])
    report = only(tmp_path)
    assert report.complete
    assert (report.lines, report.bad) == (8, 2)


def test_a_torn_or_empty_record_at_the_end_is_passed_over(tmp_path: Path) -> None:
    path = one_file(tmp_path, [[3, 4], [5, 6], [7, 8]])
    whole = path.read_bytes()
    ends = [record.end for record in LedgerFile(path).records() if not isinstance(record, str)]
    for size in range(ends[1], ends[2]):
        for filling in (b"", b"\0" * 64):
            path.write_bytes(whole[:size] + filling)
            records = list(LedgerFile(path).records())
            assert [record.step for record in records if not isinstance(record, str)] == [0, 1]
            assert len(records) == 2


def test_damage_in_the_middle_is_reported_and_costs_only_its_records(tmp_path: Path) -> None:
    path = one_file(tmp_path, [[3, 4], [5, 6], [7, 8], [9, 10, 11, 12]])
    whole = path.read_bytes()
    ends = [record.end for record in LedgerFile(path).records() if not isinstance(record, str)]
    for position in range(ends[0], ends[1]):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x40]) + whole[position + 1 :])
        report = check(tmp_path)
        (problem,) = report.problems
        assert path.name in problem
        assert "after step 0" in problem
        assert report.epochs[0].lost.first == (5, 6)


def test_records_of_a_later_epoch_behind_damage_are_found(tmp_path: Path) -> None:
    (path,) = write_segment(tmp_path, start=1000, stop=1003)
    whole = path.read_bytes()
    write_segment(tmp_path, start=1003, stop=1010)
    begin = LedgerFile(path).begin
    path.write_bytes(whole[: begin + 2] + b"\xff" + whole[begin + 3 :])
    assert [epoch.lost.count for epoch in check(tmp_path).epochs] == [2, 0]


def test_a_missing_file_costs_only_the_lines_of_its_process(tmp_path: Path) -> None:
    paths = write_segment(tmp_path, start=0, stop=5, world_size=2)
    paths[1].unlink()
    report = check(tmp_path)
    assert report.epochs[0].lines == 5
    assert report.epochs[0].lost.count == 5
    assert "rank 1" in report.problems[0]


def test_a_file_killed_within_its_header_is_a_process_that_did_nothing(tmp_path: Path) -> None:
    paths = write_segment(tmp_path, start=0, stop=0, world_size=2)
    paths[1].write_bytes(paths[1].read_bytes()[:20])
    paths[0].write_bytes(b"")
    write_segment(tmp_path, start=0, stop=5)
    assert only(tmp_path).complete


def test_lines_to_train_on_change_with_the_segment_that_changed_them(tmp_path: Path) -> None:
    write_segment(tmp_path, start=0, stop=5)
    write_segment(tmp_path, start=5, stop=5)
    assert [path.name for path in sorted(tmp_path.glob("lines-*"))] == ["lines-0001.npy"]
    write_expected(tmp_path, EXPECTED + 5, total=20, segment=3)
    with LedgerWriter(tmp_path, segment=3, rank=0, world_size=1, start_step=5, lines=LINES) as writer:
        writer.append(step=5, epoch=1, lines=EXPECTED + 5, last=True)
    assert check(tmp_path).exact
    assert all(epoch.complete for epoch in check(tmp_path).epochs)


def test_what_is_no_ledger_is_said_to_be_none(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="no ledger"):
            verify_ledger(directory)
        assert next_segment(directory) == 1
    path = one_file(tmp_path, [[3]])
    with pytest.raises(InputError, match="epoch 4 is not in the ledger; it has 0 to 0"):
        verify_ledger(tmp_path, 4)
    path.write_bytes(b'{"version": 9}\n')
    with pytest.raises(InputError, match="no ledger file of this version"):
        verify_ledger(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array"])
def test_a_damaged_list_of_lines_is_said_to_be_damaged(tmp_path: Path, content: bytes) -> None:
    one_file(tmp_path, [[3]])
    (tmp_path / "lines-0001.npy").write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        verify_ledger(tmp_path)


def test_two_jobs_cannot_write_one_segment(tmp_path: Path) -> None:
    one_file(tmp_path, [[3]])
    with pytest.raises(RunError, match="another job"):
        LedgerWriter(tmp_path, segment=1, rank=0, world_size=1, start_step=0, lines=LINES)
    assert next_segment(tmp_path) == 2


def test_a_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        writes.append(len(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    one_file(tmp_path, [[3, 4], [5]])
    assert len(writes) == 3


def test_a_full_disk_leaves_whole_records_and_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_expected(tmp_path, EXPECTED, total=20)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:30])

    with LedgerWriter(tmp_path, segment=1, rank=0, world_size=1, start_step=0, lines=LINES) as writer:
        writer.append(step=0, epoch=0, lines=np.arange(3, 8))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(RunError, match="no space left"):
            writer.append(step=1, epoch=0, lines=np.arange(8, 13))
        monkeypatch.undo()
        writer.append(step=1, epoch=0, lines=np.arange(8, 13))
    assert only(tmp_path).complete
    assert not check(tmp_path).problems


def test_the_header_tells_what_wrote_the_file(tmp_path: Path) -> None:
    (_, path) = write_segment(tmp_path, start=7, stop=7, world_size=2)
    assert path.name == "segment-0001-rank-00001.bin"
    assert json.loads(path.read_text().splitlines()[0]) == {
        "version": 1,
        "segment": 1,
        "rank": 1,
        "world_size": 2,
        "start_step": 7,
        "lines": LINES,
    }


def test_a_check_takes_a_byte_a_line(tmp_path: Path) -> None:
    def peak(total: int) -> int:
        directory = tmp_path / str(total)
        lines = np.random.default_rng(0).permutation(total)
        write_expected(directory, lines, total=total)
        with LedgerWriter(directory, segment=1, rank=0, world_size=1, start_step=0, lines=total) as writer:
            for step, part in enumerate(np.split(lines, total // 50_000)):
                writer.append(step=step, epoch=0, lines=part)
        del lines, part
        tracemalloc.start()
        assert only(directory).complete
        measured = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return measured

    # What is held at once of records and masks is the same for both.
    assert peak(4_000_000) - peak(2_000_000) < 1.25 * 2_000_000
