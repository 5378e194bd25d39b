"""Fixtures for facts and ground truth that lie beside the checkout, where they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .training.forked import end_shared

SHARED = Path(__file__).resolve().parents[2] / "shared"

_LONG = (
    "launchers/ray",
    "launchers/slurm",
    "test_readme.py",
    "training/test_strategies.py",
    "training/test_kill_drill.py",
    "launchers/local",
    "runtime/test_deepspeed.py",
    "runtime/test_fully_sharded.py",
    "training/test_elastic.py",
    "training/test_exact_validation.py",
    "training/test_train_command.py",
)
"""Folders and files that take a minute or more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first: in the end no worker is alone with it."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((number for number, name in enumerate(_LONG) if f"/{name}" in path), len(_LONG))

    items.sort(key=place)


def _beside_checkout(name: str, marker: str) -> Path:
    """A folder beside the checkout; without it a test is skipped, or fails where CI demands it."""
    directory = SHARED / name
    if not directory.is_dir():
        if marker in os.environ.get("KETOS_TESTS_REQUIRE", "").split():
            pytest.fail(f"no {directory} beside this checkout, and tests marked {marker} must run here")
        pytest.skip(f"no ../shared/{name} beside this checkout")
    return directory


@pytest.fixture(scope="session")
def oracle_dir() -> Path:
    """The folder of facts recorded from kraken; skips the test where it is absent."""
    return _beside_checkout("oracle", "oracle")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real ground truth; skips the test where it is absent."""
    return _beside_checkout("data", "real")


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """Runs that tests have started end with them."""
    yield
    end_shared()
