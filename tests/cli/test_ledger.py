"""`ketos ledger`: one line an epoch, and an exit code that a script can trust."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from distrib.cli.main import ketos
from distrib.stream.ledger import LedgerWriter, write_expected


def run(*arguments: object) -> Result:
    return CliRunner().invoke(ketos, ["ledger", *map(str, arguments)])


def record(
    directory: Path,
    segment: int,
    start: int,
    steps: list[tuple[int, list[int]]],
    *,
    bad: tuple[int, ...] = (),
) -> None:
    """Record (epoch, lines) of the steps of a process; the last one ends its epoch and has ``bad`` lines."""
    write_expected(directory / "ledger", np.arange(30), total=30)
    with LedgerWriter(
        directory / "ledger", segment=segment, rank=0, world_size=1, start_step=start, lines=30
    ) as writer:
        for step, (epoch, lines) in enumerate(steps, start=start):
            last = step == start + len(steps) - 1
            writer.append(
                step=step,
                epoch=epoch,
                lines=np.array(lines, dtype=np.int64),
                bad=np.array(bad if last else (), dtype=np.int64),
                last=last,
            )


@pytest.fixture
def exact_run(tmp_path: Path) -> Path:
    record(tmp_path, 1, 0, [(0, [*range(10)]), (0, [*range(10, 20)])])
    record(tmp_path, 2, 1, [(0, [*range(10, 30)])])
    return tmp_path


def test_an_exact_epoch(exact_run: Path) -> None:
    result = run(exact_run)
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "epoch 0: 30 lines in 2 steps, each exactly once (1 process from step 0, 1 process from step 1)\n"
    )
    assert run(exact_run / "ledger").stdout == result.stdout


def test_an_epoch_under_way_is_no_failure(exact_run: Path) -> None:
    record(exact_run, 3, 2, [(1, [0, 1])])
    path = exact_run / "ledger" / "segment-0003-rank-00000.bin"
    path.unlink()
    with (
        LedgerWriter(exact_run / "ledger", segment=3, rank=0, world_size=2, start_step=2, lines=30) as first,
        LedgerWriter(exact_run / "ledger", segment=3, rank=1, world_size=2, start_step=2, lines=30) as second,
    ):
        first.append(step=2, epoch=1, lines=np.array([4]))
        second.append(step=2, epoch=1, lines=np.array([2, 3]))
    result = run(exact_run)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1] == (
        "epoch 1: under way: step 2, 3 of 30 lines, none twice (2 processes from step 2)"
    )


def test_lost_and_repeated_lines_are_listed_and_fail(tmp_path: Path) -> None:
    record(tmp_path, 1, 0, [(0, [0, 1, 1]), (0, [2, 0])], bad=(3,))
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "epoch 0: 6 lines in 2 steps, 26 lost, 2 repeated, 1 of them unusable (1 process from step 0)",
        "  lost: " + ", ".join(map(str, range(4, 24))) + ", …",
        "  repeated: 0, 1",
    ]


def test_damage_is_a_warning(tmp_path: Path) -> None:
    record(tmp_path, 1, 0, [(0, [*range(10)]), (0, [*range(10, 30)])])
    path = tmp_path / "ledger" / "segment-0001-rank-00000.bin"
    content = path.read_bytes()
    position = content.index(b"\n") + 30
    path.write_bytes(content[:position] + b"\xff" + content[position + 1 :])
    result = run(tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("Warning: ")
    assert "10 lost" in result.stdout


def test_one_epoch_as_json(exact_run: Path) -> None:
    record(exact_run, 3, 2, [(1, [0, 0])])
    result = run(exact_run, "--epoch", 0, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["exact"] is True
    (epoch,) = report["epochs"]
    assert (epoch["epoch"], epoch["lines"], epoch["complete"]) == (0, 30, True)
    assert epoch["segments"][1] == {"segment": 2, "world_size": 1, "first_step": 1, "last_step": 1}
    whole = run(exact_run, "--json")
    assert whole.exit_code == 1
    assert json.loads(whole.stdout)["epochs"][1]["repeated"] == {"count": 1, "first": [0]}


def test_no_run_and_no_ledger_are_bad_usage(tmp_path: Path, exact_run: Path) -> None:
    for arguments in ([], [tmp_path / "nothing"], [exact_run, "--epoch", 7]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
    (tmp_path / "empty").mkdir()
    assert "there is no ledger" in run(tmp_path / "empty").stderr
