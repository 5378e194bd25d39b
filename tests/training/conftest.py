"""A compiled sample, and the commands run as a user runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from distrib.ground_truth.sample import write_sample

from .forked import Server, shared

TINY_SPEC = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16 Do0.3]"


def ketos(*arguments: object, expect: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own and check its exit code."""
    job = shared().start(*arguments, cwd=cwd, apart=True)
    (code,) = job.wait(900)  # one that learns takes its time
    assert code == expect, job.output + job.stderr
    return subprocess.CompletedProcess(arguments, code, job.output, job.stderr)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sample ground truth: 48 line pairs, 4 pages."""
    directory = tmp_path_factory.mktemp("ground-truth") / "sample"
    write_sample(directory, pairs=48, pages=4)
    return directory


@pytest.fixture(scope="session")
def lines_arrow(sample: Path) -> Path:
    """The sample's line pairs, compiled."""
    output = sample.parent / "lines.arrow"
    ketos("--workers", 0, "compile", "-f", "path", "-o", output, *sorted((sample / "lines").glob("*.png")))
    return output


@pytest.fixture(scope="session")
def server() -> Server:
    """Starts runs that need not import anything first, and can hurt them."""
    return shared()
