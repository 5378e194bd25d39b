"""What a resumed run takes from its checkpoint, and what from its command line."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from distrib.config.learning import Train
from distrib.errors import InputError
from distrib.runtime.checkpoints.reader import open_checkpoint
from distrib.training.changed_options import refuse_changed_model

from .conftest import TINY_SPEC, ketos

pytestmark = pytest.mark.xdist_group("resume options")


@pytest.fixture(scope="module")
def begun(lines_arrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    run = tmp_path_factory.mktemp("begun") / "run"
    options = ["-f", "binary", "-B", 8, "-q", "fixed", "-N", 1, "-s", TINY_SPEC, "-o", run]
    ketos("--workers", 0, "train", *options, lines_arrow)
    return run


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it to go on with."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def test_settings_given_anew_count(run: Path) -> None:
    """A run that has gone astray is told to go on with a lower one."""
    ketos("train", "--resume", run, "-N", 2, "-r", 1e-6, "-m", 0.8, "-w", 0.25)
    group = open_checkpoint(run / "last.ckpt").groups[0]
    assert (group["lr"], group["betas"][0], group["weight_decay"]) == (1e-6, 0.8, 0.25)
    assert "lrate: 1.0e-06" in (run / "experiment.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("changed", [{"optimizer": "SGD"}, {"spec": "[1,48,0,1 Cr3,3,8]"}])
def test_another_network_or_optimizer_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(changed))} .*--load"):
        refuse_changed_model(Train(**changed), Train())  # type: ignore[arg-type]


def test_a_damaged_checkpoint_given_by_name_is_refused(run: Path) -> None:
    """One flipped bit of a tensor would be trained on without a word."""
    last = run / "last.ckpt"
    with zipfile.ZipFile(last) as archive:
        largest = max(archive.infolist(), key=lambda each: each.file_size)
    data = bytearray(last.read_bytes())
    name, extra = struct.unpack_from("<HH", data, largest.header_offset + 26)
    data[largest.header_offset + 30 + name + extra + largest.file_size // 2] ^= 1
    last.unlink()  # the other name of this file stays whole
    last.write_bytes(data)
    done = ketos("train", "--resume", last, "-N", 2, expect=2)
    assert "last.ckpt" in done.stderr
    assert "damaged" in done.stderr


@pytest.mark.slow
def test_auto_begins_and_goes_on_with_the_same_command_line(
    begun: Path, lines_arrow: Path, tmp_path: Path
) -> None:
    """A job that is requeued has nothing but its own words."""
    (weights,) = begun.glob("best_*.safetensors")
    words = ["train", "-f", "binary", "-B", 8, "-q", "fixed", "-o", tmp_path / "tuned", "-i", weights]
    for epochs in (1, 2):
        ketos("--workers", 0, *words, "--resume", "auto", "-N", epochs, lines_arrow)
    rows = (tmp_path / "tuned" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2


@pytest.mark.slow
def test_a_checkpoint_taken_elsewhere_knows_its_data_and_options(run: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    shutil.copy(run / "last.ckpt", away)
    ketos("train", "--resume", away / "last.ckpt", "-N", 2, cwd=tmp_path)
    stored = (away / "experiment.yml").read_text(encoding="utf-8")
    assert f"spec: '{TINY_SPEC}'" in stored or TINY_SPEC in stored
    assert "resume_anyway: false" in stored
