"""Every command of the README and the demo runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distrib.config.sections import Train
from distrib.config.values import make_section
from distrib.ground_truth.sample import write_sample

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16]"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _run(script: str, cwd: Path, **variables: str) -> None:
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"} | variables
    done = subprocess.run(
        ["sh", "-ec", script], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _fake_slurm(folder: Path) -> None:
    # What the scheduler does with the template's one task, which needs no cluster to be shown.
    folder.mkdir()
    for name, body in {"sbatch": 'exec bash "$@"', "srun": 'exec "$@"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", pairs=20, pages=4)
    (tmp_path / "pages").mkdir()
    for source in (*(tmp_path / "sample" / "alto").iterdir(), *(tmp_path / "sample" / "page").glob("*.png")):
        shutil.copy(source, tmp_path / "pages")
    shutil.copytree(tmp_path / "sample" / "lines", tmp_path / "lines")
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    _fake_slurm(tmp_path / "bin")
    (block,) = _blocks("yaml")
    experiment = yaml.safe_load(block)
    make_section(Train, "train", experiment["train"])
    # The README's experiment with a network and an end that suit a test.
    experiment["train"] |= {"spec": TINY, "quit": "fixed", "epochs": 1, "batch_size": 4}
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    commands = [line for part in _blocks("sh") for line in part.splitlines() if not line.startswith("make ")]
    assert len(commands) >= 9
    _run(
        "\n".join(commands),
        tmp_path,
        PATH=f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    for product in (
        "pages.arrow",
        "run/last.ckpt",
        "report.json",
        "model.mlmodel",
        "tuned/last.ckpt",
        "two/last.ckpt",
        "zero/last.ckpt",
        "zero.safetensors",
        "tars/dataset.json",
        "inspection.json",
        "sharded/last.ckpt",
        "slurm-run",
    ):
        assert (tmp_path / product).exists(), product


def test_the_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [
        line.split()[1] for part in _blocks("sh") for line in part.splitlines() if line.startswith("make ")
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
