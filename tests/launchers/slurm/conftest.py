"""One SLURM cluster for all tests of a session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, missing_programs
from .runs import Run


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[Cluster]:
    """A controller and three nodes; without the programs tests are skipped, or fail where they must run."""
    missing = missing_programs()
    if missing:
        if "slurm" in os.environ.get("KETOS_TESTS_REQUIRE", "").split():
            pytest.fail(f"no {', '.join(missing)} on PATH, and tests marked slurm must run here")
        pytest.skip(f"no {', '.join(missing)} on PATH")
    # Names of sockets may have 108 characters; folders of pytest are long.
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    try:
        with Cluster(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(slurm_session: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster of the session, with all nodes and no jobs when a test begins."""
    yield slurm_session
    slurm_session.clear()


@pytest.fixture
def new_run(cluster: Cluster, tmp_path: Path, launch_lines: Path) -> Callable[..., Run]:
    """Makes a run of the small experiment that has not been launched yet."""

    def make(name: str = "run", *, epochs: int = 2) -> Run:
        return Run(cluster, tmp_path / name, launch_lines, epochs=epochs)

    return make


@pytest.fixture(scope="session")
def submitit_installed() -> None:
    """Skip without submitit, which renders scripts; or fail where the tests with SLURM must run."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        if "slurm" in os.environ.get("KETOS_TESTS_REQUIRE", "").split():
            pytest.fail("submitit is not installed, and tests marked slurm must run here")
        pytest.skip("submitit is not installed")
