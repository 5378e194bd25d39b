"""Shards, batches and launches that cannot be: one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distrib.cli.main import ketos

from .conftest import TINY_SPEC
from .jobs import on_two_nodes, started
from .launching import rows, run

FEW = ["-q", "fixed", "-N", 1, "-s", TINY_SPEC]
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(ketos, ["--workers", "0", "-d", "cpu", *map(str, arguments)], prog_name="ketos")


@pytest.fixture(scope="module")
def compiled(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of lines in ``lines``, one file of page lines ``pages.arrow``."""
    folder = tmp_path_factory.mktemp("shards")
    images = sorted((sample / "lines").glob("*.png"))[:24]
    options = ["--shard-format", "webdataset", "--shard-size", "40K", "--height", 16]
    assert invoke("compile", "-f", "path", *options, "-o", folder / "lines", *images).exit_code == 0
    page = next(sample.glob("alto/*.xml"))
    assert invoke("compile", "-o", folder / "pages.arrow", page).exit_code == 0
    return folder


@pytest.fixture
def here(compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the data sets in it."""
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nothing(_: Path) -> None:
    """Leave the data as they are."""


def emptied(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"") and None


def written(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def mixed(folder: Path) -> None:
    """Shards of two kinds, and no manifest to tell which are meant."""
    (folder / "lines" / "dataset.json").unlink()
    shutil.copy(folder / "pages.arrow", folder / "lines")


def escaping(folder: Path) -> None:
    """A manifest that names a shard outside of its folder."""
    path = folder / "lines" / "dataset.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["name"] = "../pages.arrow"
    path.write_text(json.dumps(manifest))


TRAIN_CASES: dict[str, tuple[Callable[[Path], None], list[object], list[str]]] = {
    "missing": (nothing, ["no.tar"], ["no.tar does not exist"]),
    "missing address": (nothing, ["memory://no/such"], ["no/such"]),
    "empty tar": (emptied("e.tar"), ["e.tar"], ["e.tar"]),
    "empty arrow": (emptied("e.arrow"), ["e.arrow"], ["e.arrow"]),
    "tar of nothing": (written("e.tar", b"\0" * 10240), ["e.tar"], ["e.tar"]),
    "no tar": (written("e.tar", b"hello" * 2000), ["e.tar"], ["e.tar"]),
    "another file": (written("e.txt", b"hello"), ["e.txt"], ["e.txt", "ketos compile"]),
    "folder without data": (lambda folder: (folder / "d").mkdir(), ["d"], ["d is a folder without data set"]),
    "manifest garbage": (written("lines/dataset.json", b"{"), ["lines"], ["dataset.json"]),
    "manifest empty": (emptied("lines/dataset.json"), ["lines"], ["dataset.json"]),
    "manifest without rest": (written("lines/dataset.json", b"{}"), ["lines"], ["dataset.json"]),
    "manifest escaping": (escaping, ["lines"], ["../pages.arrow"]),
    "brace range without match": (
        nothing,
        ["lines/{000007..000009}.tar"],
        ["lines/000007.tar does not exist"],
    ),
    "brace range too large": (nothing, ["{0..99999999}.tar"], ["100,000,000", "ranges"]),
    "braces open": (nothing, ["{0..3.tar"], ["{0..3.tar"]),
    "glob without match": (nothing, ["lines/*.tgz"], ["lines/*.tgz matches no file"]),
    "two line types": (nothing, ["lines", "pages.arrow"], ["pages.arrow", "lines", "--force-type"]),
    "list of nothing": (emptied("m"), ["-t", "m"], ["m lists no files"]),
    "two kinds in a folder": (mixed, ["lines"], ["both .arrow and .tar"]),
    "no bound of a batch": (nothing, ["-B", 0, "lines"], ["--batch-size 0", "--batch-pixels"]),
    "global batch of nothing": (nothing, ["--global-batch-size", 0, "lines"], ["--global-batch-size"]),
    "window of nothing": (nothing, ["--shuffle-window", 0, "lines"], ["--shuffle-window"]),
    "cache size": (nothing, ["--cache-size", "lots", "lines"], ["--cache-size lots"]),
    "cache size 0": (nothing, ["--cache-size", "0", "--cache-dir", "c", "lines"], ["--cache-size 0"]),
    "bad share of 2": (nothing, ["--max-bad-fraction", 2, "lines"], ["--max-bad-fraction"]),
    "bad share no number": (nothing, ["--max-bad-fraction", "nan", "lines"], ["--max-bad-fraction"]),
    "anyway without resume": (nothing, ["--resume-anyway", "lines"], ["--resume-anyway", "--resume"]),
    "cache dir a file": (
        emptied("c"),
        ["--cache-dir", "c", "memory://no/such"],
        ["no/such"],
    ),
}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", TRAIN_CASES)
def test_training_data_and_options_that_cannot_be_are_refused(name: str, here: Path) -> None:
    prepare, arguments, mentions = TRAIN_CASES[name]
    prepare(here)
    before = snapshot(here)
    done = invoke("train", "-f", "binary", *FEW, "-o", "run", *arguments)
    assert done.exit_code == 2, done.output
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert "Unexpected" not in sentence
    for mention in mentions:
        assert mention in sentence
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("variables", "mention"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x"),
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "0 of 2"),
    ],
    ids=str,
)
def test_variables_of_a_launcher_that_contradict_each_other_are_refused(
    variables: dict[str, str], mention: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = snapshot(here)
    done = invoke("train", "-f", "binary", *FEW, "-o", "run", "lines")
    assert done.exit_code == 2, done.output
    assert mention in done.stderr
    assert snapshot(here) == before


@pytest.mark.parametrize(
    "options",
    [
        ["-B", 0, "--batch-pixels", 20_000],
        ["-B", 4, "--batch-pixels", 100],
        ["-B", 0, "--batch-pixels", 1],
        ["-B", 4, "--global-batch-size", 100_000],
        ["-B", 4, "--shuffle-window", 1],
        ["-B", 4, "--max-bad-fraction", 0],
    ],
    ids=str,
)
def test_odd_batches_that_are_possible_train_every_line_once(options: list[object], here: Path) -> None:
    """Few pixels leave single lines, many lines one step an epoch: odd, but what was asked for."""
    done = invoke("train", "-f", "binary", *FEW, *options, "-o", "run", "lines")
    assert done.exit_code == 0, done.output
    report = json.loads(invoke("ledger", "--json", "run").stdout)
    assert [epoch["complete"] for epoch in report["epochs"]] == [True]


def test_a_full_disk_or_file_in_the_way_of_the_cache_costs_no_run(here: Path) -> None:
    (here / "c").write_bytes(b"")
    options = ["-f", "binary", *FEW, "-s", TINY_SPEC.replace("1,16,0,1", "1,24,0,1"), "--cache-dir", "c"]
    done = invoke("train", *options, "-o", "run", "pages.arrow")
    assert done.exit_code == 0, done.output


def test_data_that_one_process_cannot_open_end_all_with_one_sentence(here: Path, tmp_path: Path) -> None:
    """A node whose disk was not mounted must not leave the others waiting."""
    (here / "other").mkdir()
    words = ["--workers", 0, "train", "-f", "binary", *FEW, "-o", tmp_path / "run", "lines"]
    done = on_two_nodes([here, here / "other"], *words)
    errors = [each.stderr for each in done]
    assert [each.returncode for each in done] == [2, 2], errors
    assert not errors[0]
    (sentence,) = errors[1].splitlines()
    assert sentence.startswith("Error: ")
    assert "lines" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_more_processes_than_lines_of_a_step_take_part_with_empty_slices(here: Path, tmp_path: Path) -> None:
    options = ["-f", "binary", *FEW, "-B", 2, "--global-batch-size", 2, "-o", tmp_path / "run", "lines"]
    run(3, "--workers", 0, "train", *options, cwd=here)
    report = json.loads(run(1, "ledger", "--json", tmp_path / "run"))
    assert [epoch["complete"] for epoch in report["epochs"]] == [True]
    assert all(row["lines"] in (1, 2) for row in rows(tmp_path / "run" / "steps.jsonl"))


@pytest.mark.slow
def test_a_device_that_is_not_there_ends_all_processes_with_one_sentence(here: Path, tmp_path: Path) -> None:
    words = ["--device", "cuda:7", "train", "-f", "binary", *FEW, "-o", tmp_path / "run", here / "lines"]
    with started(2, *words, printed=tmp_path / "out") as job:
        assert job.wait(60) == [2, 2], job.output
    (sentence,) = job.errors
    assert "--device cuda:7" in sentence
    assert not (tmp_path / "run").exists()
