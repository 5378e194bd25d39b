"""The recipes of the images: what they copy exists, what they install is pinned, and they do the same.

They are not built here: that takes a builder and gigabytes. What breaks them between builds is nearly always
a file or an extra that was renamed, and that is found.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
DEFINITION = (FOLDER / "ketos.def").read_text(encoding="utf-8")
INSTALL = FOLDER / "install.sh"


def instructions() -> list[tuple[str, list[str]]]:
    """The instructions of the Dockerfile with their words, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], shlex.split(line)[1:]) for line in whole.splitlines() if line.strip()]


def words_of(name: str) -> list[list[str]]:
    return [words for each, words in instructions() if each == name]


def definition_lines(section: str) -> list[str]:
    """The lines of all sections of this name in the Apptainer definition."""
    parts = re.split(r"^(?=%|Bootstrap:)", DEFINITION, flags=re.MULTILINE)
    found = [part.splitlines()[1:] for part in parts if part.startswith(f"%{section}\n")]
    return [line.strip() for lines in found for line in lines if line.strip() and line.strip()[0] != "#"]


def copied() -> set[str]:
    """What the Dockerfile copies from the sources."""
    return {source for words in words_of("COPY") if not words[0].startswith("--") for source in words[:-1]}


def project() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_everything_that_is_copied_exists_and_reaches_the_builder() -> None:
    """A path that .dockerignore keeps back is not there when it is to be copied."""
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in ignore
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(source == each or source.startswith(f"{each}/") for each in allowed), source
    assert set(allowed) <= copied()


def test_the_definition_copies_the_same() -> None:
    here = {line.split()[0] for line in definition_lines("files")}
    assert all((ROOT / source).exists() or source == "/opt/ketos" for source in here)
    assert here - {"/opt/ketos"} == copied() - {"distrib/__init__.py"}


def test_the_build_backend_gets_all_that_it_reads() -> None:
    """A file that pyproject.toml names and the image lacks would fail the build at its end."""
    assert 'readme = "README.md"' in project()
    assert 'license = "Apache-2.0"' in project()
    packages = re.search(r"^include = \[(.*)\]$", project(), re.MULTILINE)
    assert packages is not None
    assert {name.strip(' "*') for name in packages[1].split(",")} <= copied()
    assert {"README.md", "pyproject.toml", "constraints.txt"} <= copied()


def test_the_base_is_a_released_version_and_the_same_everywhere() -> None:
    versions = {words[0].partition("=")[2] for words in words_of("ARG") if words[0].startswith("PYTHON=")}
    versions |= {
        line.partition("=")[2] for line in definition_lines("arguments") if line.startswith("PYTHON=")
    }
    assert len(versions) == 1
    assert re.fullmatch(r"3\.\d+\.\d+", versions.pop())
    bases = [words[0].replace("${PYTHON}", "X") for words in words_of("FROM")]
    bases += re.findall(r"^From: (.*)$", DEFINITION.replace("{{ PYTHON }}", "X"), re.MULTILINE)
    assert bases == ["python:X-slim-bookworm"] * 4


def test_the_image_is_not_run_as_root() -> None:
    names = [name for name, _ in instructions()]
    assert names.index("USER") > len(names) - 1 - names[::-1].index("COPY")
    assert words_of("USER") == [["ketos"]]
    assert words_of("ENTRYPOINT") == [["[ketos]"]]


def test_no_host_is_named_from_which_packages_come() -> None:
    """The builder's own configuration says that, or an argument without a default."""
    for path in FOLDER.iterdir():
        assert "://" not in path.read_text(encoding="utf-8"), path
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "TORCH_INDEX_URL"):
        assert [name] in words_of("ARG")
        assert f"{name}=" in definition_lines("arguments")


def test_the_extras_exist_and_all_of_them_are_pinned() -> None:
    """An extra without a pin would make of every build another image."""
    (extras,) = [words[0].partition("=")[2] for words in words_of("ARG") if words[0].startswith("EXTRAS=")]
    assert f"EXTRAS={extras}" in definition_lines("arguments")
    table = project().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert re.search(rf"^{extras} = ", table, re.MULTILINE)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {Requirement(line).name for line in pins if line and line[0] != "#"}
    needed = project().partition("\ndependencies = [")[2].partition("]\n")[0]
    needed += "".join(re.findall(r"^(?:ray|slurm|deepspeed|coreml) = (.*)$", table, re.MULTILINE))
    names = {canonicalize_name(Requirement(each).name) for each in re.findall(r'"([^"]+)"', needed)}
    assert len(names) > 20
    assert names <= {canonicalize_name(name) for name in pinned}


def test_both_recipes_take_the_same_steps() -> None:
    def steps(text: str) -> list[str]:
        return re.findall(r"sh docker/install\.sh (\w+)", re.sub(r"^#.*$", "", text, flags=re.MULTILINE))

    assert steps(DOCKERFILE) == steps(DEFINITION) == ["torch", "requirements", "ketos"]


def install(tmp_path: Path, *words: str, cuda: str = "") -> subprocess.CompletedProcess[str]:
    """Run the script with a Python that writes down what it was to do, and finds a torch with this CUDA."""
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n'
        f'[ "$2" = venv ] && mkdir -p "$4/bin" && cp {stand_in} "$4/bin/python"\n'
        f"[ \"$1\" = -c ] && echo '{cuda}'\nexit 0\n",
        encoding="utf-8",
    )
    stand_in.chmod(0o755)
    return subprocess.run(
        ["sh", str(INSTALL), *words],
        cwd=ROOT,
        env={"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "TORCH_INDEX_URL": "somewhere"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("variant", "cuda", "remedy"),
    [
        ("cpu", "12.8", "name an index of CPU builds with TORCH_INDEX_URL"),
        ("cuda", "", "leave TORCH_INDEX_URL out"),
        ("gpu", "12.8", "give cpu or cuda"),
    ],
)
def test_the_wrong_kind_of_torch_ends_a_build_with_a_sentence(
    variant: str, cuda: str, remedy: str, tmp_path: Path
) -> None:
    """An image without CUDA would be noticed on the cluster; one with it, by its size at best."""
    done = install(tmp_path, "torch", variant, str(tmp_path / "ketos"), cuda=cuda)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: VARIANT={variant}")
    assert remedy in done.stderr


@pytest.mark.parametrize(("variant", "cuda"), [("cpu", ""), ("cuda", "12.8")])
def test_torch_comes_from_its_index_and_pinned(variant: str, cuda: str, tmp_path: Path) -> None:
    done = install(tmp_path, "torch", variant, str(tmp_path / "ketos"), cuda=cuda)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    (call,) = [line for line in calls if line.startswith("-m pip ")]
    assert "-c constraints.txt" in call
    assert "--index-url somewhere" in call
    assert call.endswith(" torch")
