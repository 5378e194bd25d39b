"""kraken's data sets are read, and ours from the same ground truth hold the same lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from PIL import Image

from distrib.ground_truth.records import FormatType, LineType
from distrib.shards.arrow import open_arrow
from distrib.shards.compiling.compile import CompileJob, compile_dataset

from .conftest import ReadBack

pytestmark = [pytest.mark.oracle, pytest.mark.real]

CASES: Final[dict[str, tuple[FormatType, LineType]]] = {
    "pairs": ("path", "bbox"),
    "alto": ("alto", "baselines"),
    "page": ("page", "baselines"),
}


FOLDERS = (
    "arabic-lines",
    "fraktur-lines",
    "hand-fr-page-alto",
    "print16-alto/bpt6k1514025q",
    "print16-alto/bpt6k70048d",
)
"""Where the files named in ``*.files.json`` are; each name occurs in one of these folders only."""


def sources(name: str, oracle_dir: Path, real_data: Path) -> list[Path]:
    names = json.loads((oracle_dir / f"{name}.files.json").read_text(encoding="utf-8"))
    candidates = [[real_data / folder / file for folder in FOLDERS] for file in names]
    return [next(path for path in paths if path.exists()) for paths in candidates]


def difference(ours: Image.Image, theirs: Image.Image) -> float:
    """Mean difference in grey levels of two images of one size."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.int16) for image in (ours, theirs))
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize("name", CASES)
def test_kraken_data_sets_are_read(name: str, oracle_dir: Path) -> None:
    path = oracle_dir / f"{name}.arrow"
    stored = ReadBack(path)
    dataset, index = stored.dataset, stored.index
    assert dataset.line_type == CASES[name][1]
    assert len(stored) == open_arrow(path).metadata.counts.all
    texts, alphabet = "".join(stored.texts()), dict(dataset.alphabet or {})
    assert {character: texts.count(character) for character in alphabet} == alphabet
    sizes = [stored.image(i).size for i in range(len(stored))]
    assert sizes == [(entry.width, entry.height) for entry in stored.entries()]
    assert len(set(index.column("key").tolist())) == len(stored)
    assert not index.has_page_keys


@pytest.mark.parametrize("name", CASES)
def test_compiled_data_sets_hold_the_same_lines(
    name: str, oracle_dir: Path, real_data: Path, tmp_path: Path
) -> None:
    """A model trained on kraken's lines must meet the same images and texts here."""
    format_type, line_type = CASES[name]
    job = CompileJob(
        sources=sources(name, oracle_dir, real_data),
        output=tmp_path / "ours.arrow",
        format_type=format_type,
    )
    compile_dataset(job)
    kraken_file = oracle_dir / f"{name}.arrow"
    ours, theirs = ReadBack(job.output), ReadBack(kraken_file)
    assert ours.dataset.line_type == line_type
    assert ours.texts() == theirs.texts()
    assert (ours.dataset.alphabet, ours.dataset.im_mode) == (theirs.dataset.alphabet, theirs.dataset.im_mode)
    assert open_arrow(job.output).metadata.counts == open_arrow(kraken_file).metadata.counts
    pairs = [(ours.image(i), theirs.image(i)) for i in range(len(ours))]
    assert [a.mode for a, _ in pairs] == [b.mode for _, b in pairs]
    alike = sum(a.size == b.size and difference(a, b) < 3 for a, b in pairs)
    assert alike >= 0.98 * len(pairs)
