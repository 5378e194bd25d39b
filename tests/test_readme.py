"""Every command of the README and the demo runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.ground_truth.sample import write_sample

from .readme import ELSEWHERE, ROOT, blocks, prepare, titles


def _run(script: str, cwd: Path, **variables: str) -> None:
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"} | variables
    done = subprocess.run(
        ["sh", "-ec", script], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", pairs=20, pages=4)
    (tmp_path / "pages").mkdir()
    for source in (*(tmp_path / "sample" / "alto").iterdir(), *(tmp_path / "sample" / "page").glob("*.png")):
        shutil.copy(source, tmp_path / "pages")
    shutil.copytree(tmp_path / "sample" / "lines", tmp_path / "lines")
    shutil.copytree(tmp_path / "pages", tmp_path / "new")
    prepare(tmp_path)
    here = [title for title in titles() if title not in ELSEWHERE]
    parts = blocks("sh", *here)
    commands = [line for part in parts for line in part.splitlines() if not line.startswith("make ")]
    assert len(commands) >= 9
    _run("\n".join(commands), tmp_path)
    for product in (
        "pages.arrow",
        "run/last.ckpt",
        "report.json",
        "model.mlmodel",
        "tuned/last.ckpt",
        "pretrained/last.ckpt",
        "taught/last.ckpt",
        "two/last.ckpt",
        "zero/last.ckpt",
        "zero.safetensors",
        "tars/dataset.json",
        "inspection.json",
        "sharded/last.ckpt",
    ):
        assert (tmp_path / product).exists(), product


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [
        line.split()[1] for part in blocks("sh") for line in part.splitlines() if line.startswith("make ")
    ]
    assert {"demo", "test", "lint", "bench"} == set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    # As a file: on the command line of the shell the words would be found that name what is to be killed.
    _run(f"sh '{ROOT / 'docs' / 'demo.sh'}'", tmp_path)
    (weights,) = (tmp_path / "demo" / "run").glob("best_*.safetensors")
    assert float(weights.stem.removeprefix("best_")) > 0.85
