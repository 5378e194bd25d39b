"""`ketos compile --shard-format`: what a user types and reads, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distrib.cli.main import ketos
from distrib.errors import InputError
from distrib.ground_truth.sample import write_sample
from distrib.runtime.topology import topology_of

ROOT = Path(__file__).resolve().parents[2]


def invoke(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(
        ketos, ["--workers", "0", "compile", *map(str, arguments)], prog_name="ketos", env=env
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, pairs=8, pages=3)
    return folder


def pages(sample: Path) -> list[Path]:
    return sorted(sample.glob("*/*.xml"))


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("shard_format", ["arrow", "webdataset"])
def test_a_folder_of_shards_and_its_summary(tmp_path: Path, sample: Path, shard_format: str) -> None:
    out = tmp_path / "ds"
    options = ["-o", out, "--shard-format", shard_format, "--shard-size", "300K"]
    first = invoke(*options, *pages(sample))
    assert first.exit_code == 0, first.output
    manifest = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    assert (manifest["format"], manifest["height"], manifest["normalized"]) == (shard_format, 120, True)
    assert f"{manifest['lines']} lines of {len(pages(sample))} files" in first.stdout
    assert f"{len(manifest['shards'])} shards of " in first.stdout
    assert "reused" not in first.stdout
    second = invoke(*options, *pages(sample))
    assert f"{len(pages(sample))} files reused" in second.stdout
    assert json.loads((out / "dataset.json").read_text(encoding="utf-8")) == manifest


@pytest.mark.parametrize(
    ("options", "normalized", "height"),
    [
        (["--shard-format", "arrow"], True, 120),
        (["--shard-format", "arrow", "--lines", "raw"], False, 120),
        (["--shard-format", "arrow", "--height", "48"], True, 48),
        ([], False, 120),
        (["--lines", "normalized", "--height", "48"], True, 48),
        (["--lines", "auto"], False, 120),
    ],
)
def test_how_lines_are_stored(
    tmp_path: Path, sample: Path, options: list[str], normalized: bool, height: int
) -> None:
    """A single file is for kraken too, which scales lines itself; shards are for training, which need not."""
    import pyarrow as pa

    out = tmp_path / "out"
    images = sorted((sample / "lines").glob("*.png"))
    done = invoke("-f", "path", "-o", out, *options, *images)
    assert done.exit_code == 0, done.output
    path = out / "000000.arrow" if out.is_dir() else out
    schema = pa.ipc.open_file(path).schema
    own = json.loads(schema.metadata[b"ketos_distrib"])
    assert (own["normalized"], own["height"]) == (normalized, height)
    assert json.loads(schema.metadata[b"lines"])["image_type"] == "raw"
    table = pa.ipc.open_file(path).read_all()
    heights, columns = table["height"].to_pylist(), table["columns"].to_pylist()
    if normalized:
        assert set(heights) == {height}
        assert columns == table["width"].to_pylist()
    else:
        assert set(columns) == {0}  # known only once a line is straightened


def test_what_it_refuses(tmp_path: Path, sample: Path) -> None:
    """The folder is replaced as a whole: what is no data set of ours in it would be lost."""
    (tmp_path / "file").write_text("important")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("important")
    mine = tmp_path / "mine"
    assert invoke("-o", mine, "--shard-format", "arrow", pages(sample)[0]).exit_code == 0
    (mine / "notes.txt").write_text("important")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "dataset.json").write_text("{}")
    before = snapshot(tmp_path)
    source = pages(sample)[0]
    for arguments, mention in (
        (["-o", tmp_path / "file"], "is a file; with --shard-format give the name of a folder"),
        (["-o", tmp_path / "x.arrow"], "is the name of a file; with --shard-format"),
        (["-o", tmp_path / "folder"], "folder without a data set, with thesis.tex in it"),
        (["-o", mine], "holds notes.txt beside its data set, which would be lost"),
        (["-o", damaged], "describes no data set"),
        (["-o", tmp_path / "no" / "ds"], "does not exist; create it first"),
        (["-o", tmp_path / "file" / "ds"], "is a file, no folder"),
        (["-o", "/proc/ds"], "/proc"),
        (["-o", tmp_path / "ds", "--shard-size", "0"], "--shard-size 0: not a size"),
        (["-o", tmp_path / "ds", "--shard-size", "many"], "--shard-size many: not a size"),
        (["-o", mine, "--report", mine / "r.jsonl"], "mine"),
        (["-o", tmp_path / "ds", "--report", tmp_path / "ds" / "r.jsonl"], "--report"),
        (["-o", tmp_path / "ds", "--height", "0"], "height"),
    ):
        result = invoke(*arguments, "--shard-format", "webdataset", source)
        assert result.exit_code == 2, (arguments, result.output)
        sentence = result.stderr.strip().splitlines()[-1]
        assert sentence.startswith("Error: ")
        assert sentence.endswith(".")
        assert mention in sentence
        assert "Unexpected" not in sentence
        assert snapshot(tmp_path) == before, arguments


def test_an_empty_folder_and_a_link_are_used(tmp_path: Path, sample: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        done = invoke("-o", tmp_path / "link", "--shard-format", "arrow", pages(sample)[0])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "dataset.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_several_processes_do_not_write_one_file(tmp_path: Path, sample: Path) -> None:
    """Each would write all of it, over the others."""
    done = invoke("-o", tmp_path / "a.arrow", pages(sample)[0], env={"RANK": "0", "WORLD_SIZE": "2"})
    assert done.exit_code == 2
    assert "2 processes cannot write one file together; give --shard-format" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, (1, 2)),
        # A step may have fewer tasks than its job.
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"},
            (1, 2),
        ),
        # The batch script itself: waiting for tasks that nobody starts would take for ever.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, (0, 1)),
        ({"SLURM_PROCID": "0"}, (0, 1)),
    ],
)
def test_topology(environment: dict[str, str], wanted: tuple[int, int]) -> None:
    found = topology_of(environment)
    assert (found.rank, found.world_size) == wanted


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"SLURM_PROCID": "9", "SLURM_NTASKS": "2"},
    ],
)
def test_topology_that_makes_no_sense(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"unset (these|its) variables to run one process"):
        topology_of(environment)


def compile_process(out: Path, sources: list[Path], *options: str, **popen: object) -> subprocess.Popen[str]:
    arguments = [
        "compile",
        "-f",
        "path",
        "-o",
        out,
        "--shard-format",
        "arrow",
        "--shard-size",
        "20K",
        *options,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "distrib", "--workers", "2", *map(str, [*arguments, *sources])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,  # type: ignore[call-overload]
    )


@pytest.mark.slow
def test_a_killed_command_goes_on_when_it_is_given_again(tmp_path: Path) -> None:
    """With worker processes, which must end with it and must not hold its lock."""
    write_sample(tmp_path / "sample", pairs=200, pages=0)
    images = sorted((tmp_path / "sample" / "lines").glob("*.png"))
    out = tmp_path / "ds"
    first = compile_process(out, images)
    record = tmp_path / ".ds.compiling" / "parts" / "00000" / "000001.record"
    while not record.exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not out.exists()
    second = compile_process(out, images)
    output, errors = second.communicate(timeout=100)
    assert second.returncode == 0, errors
    assert "200 lines of 200 files" in output
    assert "files reused" in output
    undisturbed = compile_process(tmp_path / "other", images)
    undisturbed.communicate(timeout=100)
    assert snapshot(out) == snapshot(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_disk_that_is_full_keeps_the_old_data_set(tmp_path: Path, sample: Path) -> None:
    images = sorted((sample / "lines").glob("*.png"))
    out = tmp_path / "ds"
    assert compile_process(out, images[:2]).wait(100) == 0
    before = snapshot(out)

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    process = compile_process(out, images, "--shard-size", "100K", preexec_fn=no_large_files)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1, errors
    assert "no space left" in errors.splitlines()[-1]
    assert snapshot(out) == before
