"""Tests that share what is costly to make, such as a cluster, run in one process of several."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("a group")
def test_groups_of_tests_stay_together(request: pytest.FixtureRequest) -> None:
    """Versions of pytest that pytest-xdist does not know yet scatter them without a word: a SLURM cluster and
    a Ray cluster for each process, and fixtures made again and again."""
    if "PYTEST_XDIST_WORKER" not in os.environ or not request.config.getoption("loadgroup", False):
        pytest.skip("tests are not divided among processes by group")
    assert request.node.nodeid.endswith("@a group")
