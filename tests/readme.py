"""The commands of the README, by section, and what they are run on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import yaml

from distrib.config.learning import Train
from distrib.config.values import make_section

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16]"
ELSEWHERE = ("On SLURM", "On Ray")
"""Sections whose commands need a cluster."""


def blocks(language: str, *sections: str) -> list[str]:
    """The code blocks of a language, in these sections or in all."""
    return [
        block
        for title, text in _sections().items()
        if not sections or title in sections
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def titles() -> list[str]:
    """The titles of the sections, in order."""
    return list(_sections())


def prepare(folder: Path) -> None:
    """Put the README's experiment there, with a network and an end that suit a test, and the templates."""
    (block,) = blocks("yaml")
    experiment = yaml.safe_load(block)
    make_section(Train, "train", experiment["train"])
    limits = {"quit": "fixed", "epochs": 2, "batch_size": 4, "global_batch_size": 8}
    # In full precision, so that runs on different targets can be compared.
    experiment["precision"] = "32-true"
    experiment["train"] |= {"spec": TINY, **limits}
    experiment["pretrain"] = {"spec": TINY, "quit": "fixed", "epochs": 1, "batch_size": 8, "warmup": 8}
    (folder / "experiment.yml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    shutil.copytree(ROOT / "slurm", folder / "slurm")


def _sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)$", README, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
