"""Whether runs on different targets make the same of the README's experiment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ..readme import prepare


def prepare_same(folder: Path, images: Sequence[Path]) -> Path:
    """Put the README's experiment and its shards there; the run that a local launch makes of them."""
    prepare(folder)
    ketos = [sys.executable, "-m", "distrib", "--config", "experiment.yml"]
    compile_ = ["compile", "-f", "path", "--shard-format", "arrow", "--height", "16", "-o", "shards"]
    train = [
        "launch",
        "local",
        "--procs-per-node",
        "2",
        "--",
        "train",
        "-f",
        "binary",
        "-o",
        "local",
        "shards",
    ]
    for words in ([*compile_, *map(str, images)], train):
        subprocess.run([*ketos, *words], check=True, capture_output=True, cwd=folder)
    return folder / "local"


def assert_same_run(run: Path, reference: Path) -> None:
    """The same losses at every step and the same weights, to what the order of a sum makes of floats, by two
    processes each."""
    ours, theirs = (load_file(next(each.glob("best_*.safetensors"))) for each in (run, reference))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() < 1e-5, name
    losses = [[row["loss"] for row in _rows(folder / "steps.jsonl")] for folder in (run, reference)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    starts = [row["processes"] for row in _rows(run / "events.jsonl") if row["event"] == "start"]
    assert set(starts) == {2}


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
