"""What is kept of the surroundings of a run: enough to repeat it, nothing secret, no strange program run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distrib.runtime.directory import repository
from distrib.runtime.directory.repository import repositories_of
from distrib.runtime.directory.run_environment import (
    ENVIRONMENT,
    describe_environment,
    without_secrets,
    write_environment,
)
from distrib.runtime.topology import Topology

ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    options = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "init.defaultBranch=main")
    command = ["git", *options, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRON).stdout.strip()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A repository with two data sets."""
    folder = tmp_path / "corpus"
    for name in ("train", "test"):
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.lst").write_text("a.png\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return folder


def describe(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"data": [], "environ": ENVIRON, "command": ["ketos", "train"]} | changes
    return describe_environment(Topology(rank=1, world_size=4, local_rank=1, local_world_size=2), **arguments)


def test_it_says_what_a_repetition_needs_in_plain_types() -> None:
    found = describe()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["rank"], found["world_size"], found["local_world_size"], found["nodes"]) == (1, 4, 2, 2)
    assert found["packages"]["torch"]
    assert found["packages"]["numpy"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["memory_bytes"] > 1 << 20
    assert found["cpus"] >= 1
    assert found["user"]
    assert found["command"] == ["ketos", "train"]


def test_deepspeed_is_not_imported_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds, and compiles."""
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    describe()
    assert "deepspeed" not in sys.modules


def test_the_launchers_are_named_and_no_secret_is() -> None:
    environ = ENVIRON | {
        "SLURM_JOB_ID": "77",
        "SLURM_JWT": "s3cret",
        "TORCHELASTIC_RUN_ID": "r",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "WANDB_API_KEY": "s3cret",
    }
    command = ["train", "-t", "https://me:s3cret@host/a.tar?X-Amz-Signature=s3cret", "s3://b/c.arrow"]
    found = describe(environ=environ, command=command)
    assert found["launcher"] == {
        "slurm": {"slurm_job_id": "77"},
        "torchrun": {"torchelastic_run_id": "r"},
    }
    assert found["command"] == ["train", "-t", "https://…@host/a.tar?…", "s3://b/c.arrow"]
    assert "s3cret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--spec=[1,120,0,1 Cr3,13,32 S1(1x0)1,3]", "--spec=[1,120,0,1 Cr3,13,32 S1(1x0)1,3]"),
        ("a@b/c?d", "a@b/c?d"),
        ("pipe://u:p@h/x", "pipe://…@h/x"),
        ("--data=https://h/x?a=1 https://h/y#z", "--data=https://h/x?… https://h/y?…"),
    ],
)
def test_only_addresses_are_shortened(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@needs_git
def test_the_commit_of_the_data_is_known_and_whether_they_have_changed_since(data: Path) -> None:
    commit = git(data, "rev-parse", "HEAD")
    paths = [data / "train" / "manifest.lst", data / "train", "s3://bucket/x.arrow", "/nonexistent/x"]
    clean = {"path": str(data), "commit": commit, "dirty": False}
    assert describe(data=paths)["repositories"] == [clean]
    (data / "test" / "manifest.lst").write_text("changed\n")
    assert describe(data=paths)["repositories"] == [clean]
    (data / "train" / "new.png").write_bytes(b"x")
    assert describe(data=paths)["repositories"] == [clean | {"dirty": True}]
    assert describe(data=[data / "test"])["repositories"] == [clean | {"dirty": True}]


@needs_git
def test_odd_names_and_links_are_paths_and_no_patterns(data: Path, tmp_path: Path) -> None:
    (data / "-x[1]*").write_text("x")
    (tmp_path / "link").symlink_to(data / "train")
    assert repositories_of([data / "-x[1]*"], environ=ENVIRON)[0]["dirty"] is True
    assert repositories_of([tmp_path / "link" / "manifest.lst"], environ=ENVIRON)[0]["dirty"] is False


@needs_git
def test_many_paths_are_one_question(data: Path) -> None:
    paths = [data / "train" / f"{number}.xml" for number in range(20_000)]
    began = time.monotonic()
    assert [each["dirty"] for each in repositories_of(paths, environ=ENVIRON)] == [False]
    assert time.monotonic() - began < 5


@needs_git
def test_no_commit_and_no_repository(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    git(tmp_path / "new", "init", "-q")
    (tmp_path / "broken" / ".git").mkdir(parents=True)
    paths = [tmp_path / "new", tmp_path / "broken", tmp_path]
    assert repositories_of(paths, environ=ENVIRON) == [
        {"path": str(tmp_path / "new"), "commit": None, "dirty": False}
    ]
    assert repositories_of(paths, environ={"PATH": ""}) == []


@needs_git
@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser gives files to others")
def test_the_repository_of_another_user_is_left_alone(data: Path) -> None:
    os.chown(data, 12345, 12345)
    os.chown(data / ".git", 12345, 12345)
    assert repositories_of([data], environ=ENVIRON) == []


def make_hostile(data: Path, marks: Path) -> None:
    """A repository that names a program wherever one can be named for what `git status` does."""
    program = data / "program"
    program.write_text(f'#!/bin/sh\necho "$0" "$@" >> {marks}\ncat\n')
    program.chmod(0o755)
    (data / ".gitattributes").write_text("*.lst filter=evil\n*.png filter=worse\n")
    git(data, "config", "filter.evil.clean", str(program))
    git(data, "config", "filter.evil.required", "true")
    git(data, "config", "filter.worse.process", str(program))
    git(data, "config", "core.fsmonitor", str(program))
    git(data, "config", "core.pager", str(program))
    git(data, "config", "status.submoduleSummary", "true")
    shutil.copy(program, data / ".git" / "hooks" / "post-index-change")
    # Times alone make git compare.
    for manifest in data.glob("*/manifest.lst"):
        os.utime(manifest, (1, 1))


@needs_git
def test_a_repository_cannot_have_programs_run(data: Path, tmp_path: Path) -> None:
    """A data set from somewhere may come with its .git."""
    marks = tmp_path / "marks"
    make_hostile(data, marks)
    index = (data / ".git" / "index").read_bytes()
    (found,) = repositories_of([data / "train"], environ=ENVIRON)
    assert found["dirty"] is False
    assert not marks.exists()
    assert (data / ".git" / "index").read_bytes() == index
    git(data, "config", "filter.a=b.clean", str(data / "program"))
    (data / ".gitattributes").write_text("*.lst filter=a=b\n")
    (found,) = repositories_of([data / "train"], environ=ENVIRON)
    assert found["dirty"] is None
    assert not marks.exists()
    git(data, "status")
    assert marks.exists(), "the repository is not as hostile as it looks"


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


def test_git_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file server that has gone; what it has started goes with it."""
    monkeypatch.setattr(repository, "_TIMEOUT", 0.2)
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {tmp_path}/pid\nwait\n")
    program.chmod(0o755)
    (tmp_path / ".git").mkdir()
    began = time.monotonic()
    assert repositories_of([tmp_path], environ={"PATH": f"{program.parent}:/bin:/usr/bin"}) == []
    assert time.monotonic() - began < 10
    pid = int((tmp_path / "pid").read_text())
    while _runs(pid):  # the system takes its time to end what was killed
        assert time.monotonic() - began < 20
        time.sleep(0.01)


def test_starts_are_kept_the_newest_last(tmp_path: Path) -> None:
    """A run that was continued on another machine is not the run of one environment."""
    for number in range(60):
        write_environment(tmp_path, [{"host": number}, {"host": "other"}])
    starts = json.loads((tmp_path / ENVIRONMENT).read_text())
    assert [start["environments"][0]["host"] for start in starts] == list(range(10, 60))
    assert starts[-1]["started"] >= starts[0]["started"]
    assert {path.name for path in tmp_path.iterdir()} == {ENVIRONMENT}


def test_the_file_stays_small(tmp_path: Path) -> None:
    for _ in range(4):
        write_environment(tmp_path, [{"text": "x" * 1_500_000}])
    assert (tmp_path / ENVIRONMENT).stat().st_size < 5 << 20
    assert len(json.loads((tmp_path / ENVIRONMENT).read_text())) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{}", b"[" * 100_000])
def test_a_damaged_file_is_begun_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ENVIRONMENT).write_bytes(content)
    write_environment(tmp_path, [{"host": "h"}])
    (start,) = json.loads((tmp_path / ENVIRONMENT).read_text())
    assert start["environments"] == [{"host": "h"}]
