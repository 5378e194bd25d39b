"""Promise 10: what validation logs is what `ketos test` of the exported weights counts, to the last edit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distrib.stream.lines import open_collection

from .conftest import ketos
from .launching import rows, run
from .untrained import write_untrained

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("exact validation")]

TRAIN = ["-q", "fixed", "-N", 3, "-B", 4, "--global-batch-size", 8, "-r", 1e-4, "--resize", "union"]
WORLD_SIZES = (1, 2, 3)


@pytest.fixture(scope="module")
def held(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 lines to validate on and one without text: batches of 4 and 2 or 3 processes divide neither."""
    folder = tmp_path_factory.mktemp("held")
    pairs = []
    for image in sorted((sample / "lines").glob("*.png"))[:18]:
        pairs.append(Path(shutil.copy(image, folder)))
        shutil.copy(image.with_suffix(".gt.txt"), folder)
    pairs[5].with_suffix(".gt.txt").write_text(" \n", encoding="utf-8")
    ketos("--workers", 0, "compile", "-f", "path", "--keep-empty-lines", "-o", folder / "held.arrow", *pairs)
    assert len(open_collection([folder / "held.arrow"])) == 18
    (folder / "held.lst").write_text(str(folder / "held.arrow"), encoding="utf-8")
    return folder / "held.lst"


@pytest.mark.parametrize(("precision", "trained_by"), [("32-true", 1), ("32-true", 3), ("bf16-mixed", 2)])
def test_validation_and_test_count_the_same_edits(
    precision: str, trained_by: int, held: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    """Broken: lines counted twice or not at all, rates averaged, or weights that are not those validated."""
    top = ["--workers", 0, "-d", "cpu", "--seed", 3, "--precision", precision]
    directory = tmp_path / "run"
    start = write_untrained(tmp_path / "start.safetensors", seed=1)
    options = ["-f", "binary", *TRAIN, "-i", start, "-o", directory, "-e", held]
    run(trained_by, *top, "train", *options, lines_arrow)
    (weights,) = directory.glob("best_*.safetensors")
    logged = [(row["val_accuracy"], row["val_word_accuracy"]) for row in rows(directory / "metrics.jsonl")]
    best = max(accuracy for accuracy, _ in logged)
    reports = []
    for world_size in WORLD_SIZES:
        report = tmp_path / f"{world_size}.json"
        run(world_size, *top, "test", "-m", weights, "-f", "binary", "-B", 4, "-e", held, "--json", report)
        reports.append(report.read_bytes())
    assert len(set(reports)) == 1
    found: dict[str, Any] = json.loads(reports[0])
    assert found["lines"] == 17
    # Quotients of the same two integers: equal to the last bit where, and only where, the edits are.
    assert 1 - found["cer"] == best
    assert (best, 1 - found["wer"]) in logged
    # A model that reads nothing would prove little.
    assert found["substitutions"] > 100
