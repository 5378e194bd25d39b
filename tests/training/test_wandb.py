"""Weights & Biases itself, writing to disk only."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from .comparing import training
from .forked import Server


def test_a_run_is_logged_on_disk_and_goes_on_in_the_same_log(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    """Nobody is asked for a key, nothing is sent, and a resume is the same run to it."""
    if find_spec("wandb") is None:
        if "wandb" in os.environ.get("KETOS_TESTS_REQUIRE", "").split():
            pytest.fail("wandb is not installed, and its test must run here")
        pytest.skip("wandb is not installed")
    run = tmp_path / "run"
    server.run(*training(lines_arrow, run, "--logger", "wandb", epochs=1))
    server.run("train", "--resume", run, "-N", 2)
    logs = sorted(run.glob("wandb/**/offline-run-*/*.wandb"))
    assert len(logs) == 2
    assert all(log.stat().st_size for log in logs)
    assert len({log.stem for log in logs}) == 1, "both starts have one name"
