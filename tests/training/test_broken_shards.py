"""Shards that are damaged, cut, deleted: a run goes on or stops as promised, and its records agree."""

from __future__ import annotations

import json
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fsspec.implementations.memory import MemoryFileSystem

from distrib.cli.main import ketos
from distrib.stream.lines import LineCollection, open_collection

from .conftest import TINY_SPEC
from .jobs import children, kill, started
from .launching import rows, run

SMALL = ["-B", 2, "--global-batch-size", 4, "-q", "fixed", "-s", TINY_SPEC]
EXACT_ENDS = 10.0
"""Seconds within which a job must have ended once one of its processes has."""


def invoke(*arguments: object) -> Result:
    """The command in this process, reading without workers."""
    options = ["--workers", "0", "-d", "cpu", "--seed", "5"]
    return CliRunner().invoke(ketos, [*options, *map(str, arguments)], prog_name="ketos")


@pytest.fixture(scope="module")
def compiled(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of shards ``arrow`` and ``webdataset``, of the same 48 lines."""
    folder = tmp_path_factory.mktemp("shards")
    images = sorted((sample / "lines").glob("*.png"))
    for kind in ("arrow", "webdataset"):
        options = ["-f", "path", "--shard-format", kind, "--shard-size", "10K", "--height", 16]
        done = invoke("compile", *options, "-o", folder / kind, *images)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def shards(compiled: Path, tmp_path: Path) -> Path:
    """Copies to damage."""
    return Path(shutil.copytree(compiled, tmp_path / "shards"))


def cut(data: LineCollection, shard: int) -> set[int]:
    """Cut a shard in the middle; the lines that are lost."""
    path = Path(data.shards[shard].address)
    half = path.stat().st_size // 2
    lost = {line for line in lines_of(data, shard) if sum(place_in_shard(data, line)) > half}
    path.write_bytes(path.read_bytes()[:half])
    assert 0 < len(lost) < len(lines_of(data, shard))
    return lost


def flip(data: LineCollection, lines: set[int]) -> set[int]:
    """Flip a byte in the middle of the image of each of the lines."""
    for line in lines:
        shard = next(number for number in range(len(data.shards)) if line in lines_of(data, number))
        offset, size = place_in_shard(data, line)
        with Path(data.shards[shard].address).open("r+b") as file:
            file.seek(offset + size // 2)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 0xFF]))
    return lines


def lines_of(data: LineCollection, shard: int) -> range:
    return range(int(data.shard_starts[shard]), int(data.shard_starts[shard + 1]))


def place_in_shard(data: LineCollection, line: int) -> tuple[int, int]:
    """(offset, size) of the image of a line."""
    start = 0
    for dataset in data.datasets:
        if line < start + len(dataset):
            entry = dataset.index.entry(line - start)
            return entry.offset, entry.size
        start += len(dataset)
    raise IndexError(line)


def check_records(directory: Path, data: LineCollection, *, epochs: int) -> set[int]:
    """That step log, ledger and list of bad lines tell the same; the lines in the list."""
    listed = rows(directory / "bad_lines.jsonl")
    for row in listed:
        assert data.place(int(row["line"])) == (row["source"], row["id"])
        assert str(row["reason"]).startswith("unreadable: ")
    lines = [int(row["line"]) for row in listed]
    assert len(lines) == len(set(lines))
    ledger = invoke("ledger", "--json", directory)
    assert ledger.exit_code == 0, ledger.output
    report = json.loads(ledger.stdout)
    assert not report["problems"]
    assert [epoch["complete"] for epoch in report["epochs"]] == [True] * epochs
    logged: Counter[int] = Counter()
    for row in rows(directory / "steps.jsonl"):
        logged[int(row["epoch"])] += int(row["bad"])
    assert {epoch["epoch"]: epoch["bad"] for epoch in report["epochs"]} == dict(logged)
    in_training = sum(str(row["set"]) == "training" for row in listed)
    assert max(logged.values()) == in_training
    return set(lines)


@pytest.mark.parametrize("kind", ["arrow", "webdataset"])
def test_damaged_lines_are_left_out_and_named_exactly(kind: str, shards: Path, tmp_path: Path) -> None:
    data = open_collection([shards / kind])
    bad = cut(data, 1) | flip(data, {0, 2})
    done = invoke(
        "train",
        "-f",
        "binary",
        "-N",
        2,
        *SMALL,
        "--max-bad-fraction",
        0.5,
        "-o",
        tmp_path / "run",
        shards / kind,
    )
    assert done.exit_code == 0, done.output
    assert check_records(tmp_path / "run", data, epochs=2) == bad
    assert f"{len(bad)} lines could not be used" in done.stderr


@pytest.mark.slow
def test_three_processes_name_the_same_lines_and_outlive_a_shard_deleted_meanwhile(
    shards: Path, tmp_path: Path
) -> None:
    """Promise 6 with more than one process: no rank waits for a batch that does not come."""
    folders = [shards / "arrow", shards / "webdataset"]
    data = open_collection(folders)
    tar = len(data.datasets[0].shards)
    bad = cut(data, tar) | flip(data, {1, 3})
    directory = tmp_path / "run"
    options = ["-f", "binary", "-N", 3, *SMALL, "--max-bad-fraction", 0.5, "-o", directory, *folders]
    with started(3, "--workers", 0, "--seed", 5, "train", *options, printed=tmp_path / "out") as job:
        job.wait_for(lambda: rows(directory / "metrics.jsonl"))
        Path(data.shards[tar + 1].address).unlink()
        assert job.ends_within(120) == 0, job.output
    named = check_records(directory, data, epochs=3)
    # A process that has the shard open reads on; one that has not finds its lines gone.
    assert bad <= named <= bad | set(lines_of(data, tar + 1))
    assert job.output.count("could not be used") == 1


def test_a_shard_that_is_open_is_read_on_after_its_deletion(shards: Path, tmp_path: Path) -> None:
    folder = shards / "arrow"
    data = open_collection([folder])
    before = [data.record(line).png for line in lines_of(data, 0)]
    shutil.rmtree(folder)
    assert [data.record(line).png for line in lines_of(data, 0)] == before
    with pytest.raises(ValueError, match=r"000001\.arrow does not exist \(any more\)"):
        data.record(lines_of(data, 1)[0])


def test_a_missing_shard_costs_its_lines_and_is_announced(shards: Path, tmp_path: Path) -> None:
    data = open_collection([shards / "webdataset"])
    Path(data.shards[2].address).unlink()
    options = ["-f", "binary", "-N", 1, *SMALL, "--max-bad-fraction", 0.5, "-o", tmp_path / "run"]
    done = invoke("train", *options, shards / "webdataset")
    assert done.exit_code == 0, done.output
    assert "000002.tar" in done.stderr.splitlines()[0]
    assert check_records(tmp_path / "run", data, epochs=1) == set(lines_of(data, 2))


def test_too_many_damaged_lines_stop_the_run_with_a_sentence(shards: Path, tmp_path: Path) -> None:
    data = open_collection([shards / "arrow"])
    flip(data, set(lines_of(data, 0)))
    done = invoke("train", "-f", "binary", "-N", 1, *SMALL, "-o", tmp_path / "run", shards / "arrow")
    assert done.exit_code == 1
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert "lines of this epoch could not be used (such as: unreadable: " in sentence
    assert "--max-bad-fraction" in sentence
    assert rows(tmp_path / "run" / "bad_lines.jsonl")
    assert not list((tmp_path / "run").glob("best_*"))


def test_validation_lines_that_cannot_be_read_stop_the_run(shards: Path, tmp_path: Path) -> None:
    """An accuracy of no lines would otherwise choose the model."""
    data = open_collection([shards / "webdataset"])
    flip(data, set(range(len(data))))
    (tmp_path / "held").write_text(str(shards / "webdataset"), encoding="utf-8")
    options = ["-f", "binary", "-N", 1, *SMALL, "-e", tmp_path / "held", "--max-bad-fraction", 1]
    done = invoke("train", *options, "-o", tmp_path / "run", shards / "arrow")
    assert done.exit_code == 1
    assert f"Error: {len(data)} of {len(data)} validation lines could not be used" in done.stderr
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_bad_lines_of_before_stay_listed_after_a_resume(shards: Path, tmp_path: Path) -> None:
    """A line met before a kill only, in the last epoch, would be forgotten; so would repaired ones."""
    folder, directory = shards / "arrow", tmp_path / "run"
    data = open_collection([folder])
    sound = Path(data.shards[0].address).read_bytes()
    bad = flip(data, {1, 2, 3})
    options = ["-f", "binary", *SMALL, "--max-bad-fraction", 0.5, "-o", directory, folder]
    assert invoke("train", "-N", 1, *options).exit_code == 0
    Path(data.shards[0].address).write_bytes(sound)
    done = invoke("train", "--resume", directory, "-N", 2)
    assert done.exit_code == 0, done.output
    assert {row["line"] for row in rows(directory / "bad_lines.jsonl")} == bad
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "bad_lines.jsonl").write_text("of a run that died early\n", encoding="utf-8")
    assert invoke("train", "-N", 1, *options).exit_code == 0
    assert not (directory / "bad_lines.jsonl").exists()


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_cache_disk_costs_a_warning_and_no_line(
    sample: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the cache of remote shards nor that of normalised lines may fail a run."""
    far, directory = tmp_path / "far", tmp_path / "run"
    images = sorted((sample / "lines").glob("*.png"))
    invoke("compile", "-f", "path", "--shard-format", "webdataset", "--lines", "raw", "-o", far, *images)
    spec = "[1,64,0,1 Mp4,4 S1(1x0)1,3 Lbx2]"
    options = ["-f", "binary", "-N", 2, *SMALL, "-s", spec, "--cache-dir", tmp_path / "cache"]
    store = MemoryFileSystem()
    store.put(str(far), "/far", recursive=True)
    try:
        with full_disk(100_000):
            done = invoke("train", *options, "-o", directory, "memory://far")
        assert done.exit_code == 0, done.output
        assert check_records(directory, open_collection(["memory://far"]), epochs=2) == set()
    finally:
        store.rm("/far", recursive=True)
    warnings = [record.getMessage() for record in caplog.records if "cache" in record.getMessage()]
    assert len(warnings) == 2, warnings
    assert sum("Shards cannot be kept in the cache" in warning for warning in warnings) == 1
    assert sum("takes no more lines" in warning for warning in warnings) == 1


def test_a_killed_reader_ends_the_run_with_a_sentence(lines_arrow: Path, tmp_path: Path) -> None:
    """torch reports it wherever the process happens to be; it must be neither a traceback nor a hang."""
    directory = tmp_path / "run"
    options = ["-f", "binary", "-N", 500, *SMALL, "-o", directory, lines_arrow]
    with started(1, "--workers", 1, "train", *options, printed=tmp_path / "out") as job:
        job.wait_for((directory / "last.ckpt").exists)
        kill(children(job.rank(0))[0])
        assert job.ends_within(30) == 1, job.output
    (sentence,) = job.errors
    assert sentence.startswith("Error: A process reading data was killed")


@pytest.mark.slow
def test_too_many_damaged_lines_stop_all_processes(shards: Path, tmp_path: Path) -> None:
    data = open_collection([shards / "arrow"])
    flip(data, set(lines_of(data, 0)))
    options = ["-f", "binary", "-N", 1, *SMALL, "-o", tmp_path / "run", shards / "arrow"]
    with started(3, "--workers", 1, "train", *options, printed=tmp_path / "out") as job:
        assert job.ends_within(120) == 1, job.output
    (sentence,) = job.errors
    assert "could not be used (such as: unreadable: " in sentence
    named = {row["line"] for row in rows(tmp_path / "run" / "bad_lines.jsonl")}
    assert named <= set(lines_of(data, 0))
    # Those that any of the processes met, not rank zero's alone.
    assert sentence.startswith(f"Error: {len(named)} of ")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_killed_ends_the_other_and_the_run_goes_on(
    victim: int, lines_arrow: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    options = ["-f", "binary", "-N", 40, "-F", 0.5, *SMALL, "-o", directory, lines_arrow]
    with started(2, "--workers", 0, "train", *options, printed=tmp_path / "out") as job:
        job.wait_for((directory / "last.ckpt").exists)
        kill(job.rank(victim))
        assert job.ends_within(EXACT_ENDS) == 1, job.output
    (sentence,) = job.errors
    assert sentence.startswith("Error: Another process of this job has ended")
    assert f"ketos train --resume {directory}" in sentence
    epochs = int(rows(directory / "metrics.jsonl")[-1]["epoch"]) + 2
    run(2, "train", "--resume", directory, "-N", epochs)
    assert check_records(directory, open_collection([lines_arrow]), epochs=epochs) == set()


@pytest.mark.slow
def test_a_killed_reader_of_one_process_ends_all(lines_arrow: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    options = ["-f", "binary", "-N", 500, *SMALL, "-o", directory, lines_arrow]
    with started(2, "--workers", 1, "train", *options, printed=tmp_path / "out") as job:
        job.wait_for((directory / "last.ckpt").exists)
        kill(children(job.rank(1))[0])
        assert job.ends_within(2 * EXACT_ENDS) == 1, job.output
    own, other = sorted(job.errors)
    assert own.startswith("Error: A process reading data was killed")
    assert other.startswith("Error: Another process of this job has ended")
