"""`ketos test` in several processes: what one process prints, to the byte, or one sentence and no waiting."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distrib.cli.main import ketos
from distrib.stream.lines import LineCollection, open_collection

from .forked import Job
from .jobs import children, kill, started
from .launching import run
from .untrained import write_untrained

REPORT = ["--worst", 7, "--per-file", "-B", 4]
ENDS_WITHIN = 15.0
"""Seconds within which all processes must have ended once one of them has."""


def invoke(*arguments: object) -> Result:
    """The command in this process, reading without workers."""
    return CliRunner().invoke(ketos, ["--workers", "0", "-d", "cpu", *map(str, arguments)], prog_name="ketos")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line pairs are of another type than its lines: a warning, which must come once."""
    return write_untrained(tmp_path_factory.mktemp("model") / "m.safetensors", seed=1)


@pytest.fixture(scope="module")
def compiled(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of many shards of 47 lines, which neither 2, 3 nor batches of 4 divide."""
    folder = tmp_path_factory.mktemp("shards") / "lines"
    images = sorted((sample / "lines").glob("*.png"))[:47]
    options = ["-f", "path", "--shard-format", "webdataset", "--shard-size", "60K"]
    assert invoke("compile", *options, "-o", folder, *images).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def many(lines_arrow: Path) -> list[Path]:
    """The same lines under so many names that a test of them lasts."""
    paths = [lines_arrow.with_name(f"{number}.arrow") for number in range(200)]
    for path in paths:
        path.hardlink_to(lines_arrow)
    return paths


@pytest.fixture
def damaged(compiled: Path, tmp_path: Path) -> Path:
    """The same with one shard gone, one cut and two lines changed."""
    folder = Path(shutil.copytree(compiled, tmp_path / "lines"))
    first, second, third = (folder / f"{number:06}.tar" for number in range(3))
    first.unlink()
    second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    flip_images(third, 2)
    return folder


def flip_images(shard: Path, count: int) -> None:
    """Change a byte in the first ``count`` PNG images of a tar."""
    content, at = bytearray(shard.read_bytes()), 0
    for _ in range(count):
        at = content.index(b"IDAT", at) + 8
        content[at] ^= 0xFF
    shard.write_bytes(content)


@contextmanager
def side_by_side(
    words: Sequence[Sequence[object]], folder: Path, *, nodes: int = 1, inside: Sequence[Path] = ()
) -> Iterator[list[Job]]:
    """Processes of one job as srun starts them: nobody ends the others where one fails.

    ``inside`` are their working directories, where those differ.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = len(words)
    job = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count // nodes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TMPDIR": str(folder),
    }
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        jobs = []
        for rank, each in enumerate(words):
            if inside:
                patch.chdir(inside[rank])
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank % (count // nodes))}
            command = ["--workers", 0, "-d", "cpu", "test", *each]
            printed = folder / f"printed.{rank}"
            jobs.append(
                stack.enter_context(started(1, *command, printed=printed, variables={**job, **place}))
            )
        yield jobs


def assert_same_report(processes: int, words: Sequence[object], folder: Path) -> str:
    """Run with one and with several processes and compare all that comes out; the report."""
    alone, together = folder / "alone.json", folder / "together.json"
    one = invoke("test", *words, "--json", alone)
    assert one.exit_code == 0, one.output
    several = run(processes, "--workers", 0, "-d", "cpu", "test", *words, "--json", together)
    assert sorted(several.splitlines()) == sorted((one.stdout + one.stderr).splitlines())
    assert one.stdout.rstrip() in several
    assert alone.read_bytes() == together.read_bytes()
    return one.output


@pytest.mark.slow
def test_three_processes_print_what_one_prints_of_damaged_data(
    weights: Path, damaged: Path, tmp_path: Path
) -> None:
    """Broken: a line is counted twice or never, a figure or its place depends on the number of processes,
    or what cannot be read at one of them is not told."""
    data = open_collection([damaged])
    output = assert_same_report(3, ["-m", weights, "-f", "binary", *REPORT, damaged], tmp_path)
    unread = unreadable(data)
    assert len(unread) > 3
    named = [int(line.split()[3]) for line in output.splitlines() if line.startswith("left out: line ")]
    assert named == unread
    rows = [line.split("\t") for line in output.splitlines() if line.count("\t") == 4]
    assert sum(int(row[3]) for row in rows[1:]) == len(data) - len(unread)
    # Were nothing or everything confused with the same character, no order could be wrong.
    assert sum("\t{ " in line and not line.endswith("{  }") for line in output.splitlines()) > 50


def unreadable(data: LineCollection) -> list[int]:
    found = []
    for line in range(len(data)):
        try:
            data.record(line)
        except ValueError:
            found.append(line)
    return found


def test_an_error_of_one_process_is_one_sentence_and_one_exit_code(
    weights: Path, compiled: Path, tmp_path: Path
) -> None:
    """Broken: a file that one node lacks leaves the other processes waiting, or each prints its own."""
    data = ["-f", "binary", compiled]
    words = [["-m", weights, *data], ["-m", tmp_path / "no.safetensors", *data]]
    with side_by_side(words, tmp_path) as (first, second):
        assert (first.ends_within(60), second.ends_within(60)) == (2, 2)
        assert first.output == ""
        (sentence,) = second.output.splitlines()
    assert sentence.startswith(f"Error: {tmp_path / 'no.safetensors'}: no such")


@pytest.mark.parametrize(
    "victim", [pytest.param(0, marks=pytest.mark.slow), 1], ids=["rank zero", "another rank"]
)
def test_a_killed_process_ends_the_others_within_seconds(
    victim: int, weights: Path, many: list[Path], tmp_path: Path
) -> None:
    """Broken: the others go on to the end of a long test set and wait there for half an hour."""
    words = ["-m", weights, "-f", "binary", *many]
    with side_by_side([words, words], tmp_path) as jobs:
        for job in jobs:
            (pid,) = job.pids
            job.wait_for(lambda pid=pid: has_open(pid, *many))
        time.sleep(0.5)  # in the middle of its batches
        kill(jobs[victim].rank(0))
        assert jobs[1 - victim].ends_within(ENDS_WITHIN) == 1
        (sentence,) = jobs[1 - victim].errors
        assert "Traceback" not in jobs[1 - victim].output
    assert sentence.startswith("Error: Another process of this job has ended")


def has_open(pid: int, *paths: Path) -> bool:
    """Whether a process reads any of some files: it keeps what it has read from open."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        return any(entry.readlink() in paths for entry in folder.iterdir())
    except OSError:
        return False


@pytest.mark.slow
def test_two_processes_with_workers_print_what_one_prints_of_ground_truth(
    weights: Path, sample: Path, tmp_path: Path
) -> None:
    """Broken: ground truth is compiled by each process, or where the others do not find it."""
    lines = sorted((sample / "lines").glob("*.png"))[:19]
    words = ["-m", weights, "-f", "path", *REPORT, *lines]
    one = invoke("test", *words, "--json", tmp_path / "alone.json")
    several = run(2, "--workers", 1, "-d", "cpu", "test", *words, "--json", tmp_path / "together.json")
    assert (tmp_path / "alone.json").read_bytes() == (tmp_path / "together.json").read_bytes()
    assert several.count("19 lines of 19 files") == 1
    assert one.stdout[one.stdout.index("===") :].rstrip() in several


@pytest.mark.slow
def test_processes_without_lines_take_part(weights: Path, sample: Path, tmp_path: Path) -> None:
    """Broken: more processes than lines wait for a batch that never comes."""
    few, images = tmp_path / "few.arrow", sorted((sample / "lines").glob("*.png"))[:2]
    assert invoke("compile", "-f", "path", "-o", few, *images).exit_code == 0
    words = ["-m", weights, "-f", "binary", *REPORT[:-1], 1, few]
    assert_same_report(3, words, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_count_the_same_everywhere(
    precision: str, weights: Path, compiled: Path, tmp_path: Path
) -> None:
    words = ["test", "-m", weights, "-f", "binary", "-B", 4, "--json"]
    top = ["--workers", 0, "-d", "cpu", "--precision", precision]
    for processes in (1, 2):
        run(processes, *top, *words, tmp_path / f"{processes}.json", compiled)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


@pytest.mark.slow
def test_nothing_readable_is_one_sentence_of_all(weights: Path, compiled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compiled, tmp_path / "lines"))
    shards = sorted(folder.glob("*.tar"))
    for shard in shards:
        shard.write_bytes(bytes(shard.stat().st_size))
    words = ["-m", weights, "-f", "binary", folder]
    with side_by_side([words, words], tmp_path) as (first, second):
        assert (first.ends_within(60), second.ends_within(60)) == (2, 2), first.output + second.output
        assert second.output == ""
        (sentence,) = first.errors
    assert "None of the test lines could be read (such as: " in sentence


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "data"])
def test_processes_that_read_other_files_are_refused(
    what: str, weights: Path, sample: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    """Broken: a node with a stale copy contributes the errors of another model or of other lines."""
    other = {"weights": write_untrained(tmp_path / "other.safetensors", seed=2), "data": lines_arrow}
    page_lines = tmp_path / "pages.arrow"
    assert invoke("compile", "-o", page_lines, next(sample.glob("alto/*.xml"))).exit_code == 0
    inside = [tmp_path / "node 0", tmp_path / "node 1"]
    for folder, files in zip(inside, ({}, {what: other[what]}), strict=True):
        folder.mkdir()
        (folder / "m").symlink_to(files.get("weights", weights))
        (folder / "d.arrow").symlink_to(files.get("data", page_lines))
    words = ["-m", "m", "-f", "binary", "d.arrow"]
    with side_by_side([words, words], tmp_path, inside=inside) as (first, second):
        assert (first.ends_within(60), second.ends_within(60)) == (2, 2), first.output + second.output
        assert second.output == ""
        (sentence,) = first.errors
    assert sentence.startswith(f"Error: Process 1 reads other {what} than process 0")


@pytest.mark.slow
def test_ground_truth_on_several_nodes_is_refused_with_the_remedy(
    weights: Path, sample: Path, tmp_path: Path
) -> None:
    words = ["-m", weights, "-f", "path", *sorted((sample / "lines").glob("*.png"))]
    with side_by_side([words, words], tmp_path, nodes=2) as (first, second):
        assert (first.ends_within(60), second.ends_within(60)) == (2, 2)
        assert second.output == ""
        (sentence,) = first.output.splitlines()
    assert "-f path on 2 nodes: compile the test set" in sentence


@pytest.mark.slow
def test_what_was_compiled_goes_when_the_job_is_told_to_end(
    weights: Path, sample: Path, tmp_path: Path
) -> None:
    """Broken: each test that a scheduler ends leaves a compiled data set in /tmp."""
    words = ["-m", weights, "-f", "path", *sorted((sample / "lines").glob("*.png")) * 40]
    with side_by_side([words, words], tmp_path) as jobs:
        jobs[1].wait_for(lambda: has_open(jobs[1].rank(0), *scratch(tmp_path)))
        assert scratch(tmp_path)
        for job in jobs:
            os.kill(job.rank(0), signal.SIGTERM)
        ends = [job.ends_within(ENDS_WITHIN) for job in jobs]
    assert ends[0] != 0
    assert ends[1] != 0
    assert not list(tmp_path.glob("ketos-test-*"))


def scratch(folder: Path) -> list[Path]:
    return list(folder.glob("ketos-test-*/test.arrow"))


@pytest.mark.slow
def test_a_killed_reader_of_one_process_ends_both(weights: Path, many: list[Path], tmp_path: Path) -> None:
    """Broken: a worker killed for want of memory leaves a traceback, or the job waiting."""
    words = ["-m", weights, "-f", "binary", *many]
    with started(2, "--workers", 1, "-d", "cpu", "test", *words, printed=tmp_path / "printed") as job:
        job.wait_for(lambda: readers(job, many))
        kill(readers(job, many)[0])
        assert job.ends_within(2 * ENDS_WITHIN) == 1, job.output
    assert any(sentence.startswith("Error: A process reading data was killed") for sentence in job.errors)
    assert not any("Unexpected" in sentence for sentence in job.errors)


def readers(job: Job, data: list[Path]) -> list[int]:
    """The worker processes of rank 1 that read any of ``data``."""
    return [child for child in children(job.rank(1)) if has_open(child, *data)]
