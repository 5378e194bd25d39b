"""What `ketos pretrain` refuses, with one sentence and exit code 2, before anything is trained."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from distrib.cli.main import ketos
from distrib.ground_truth.sample import write_sample

SPEC = "[1,16,0,1 Cr3,3,6 Mp4,4 S1(1x0)1,3 Lbx4]"
FEW = ["-B", "4", "-q", "fixed", "-N", "1", "-nn", "5"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(ketos, ["--workers", "0", "-d", "cpu", *map(str, arguments)], prog_name="ketos")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Line images, no text beside any."""
    root = tmp_path_factory.mktemp("images")
    write_sample(root / "sample", pairs=6, pages=1)
    found = sorted((root / "sample" / "lines").glob("*.png"))
    return [Path(shutil.copy(image, root)) for image in found]


def with_text(folder: Path) -> list[Path]:
    write_sample(folder / "with-text", pairs=4, pages=1)
    return sorted((folder / "with-text" / "lines").glob("*.png"))


def refusal(tmp_path: Path, *arguments: object) -> str:
    run = tmp_path / "run"
    result = invoke("pretrain", *FEW, "-o", run, *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not list(run.glob("*.ckpt"))
    sentence = result.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"Error: .*[.)]", sentence), sentence
    return sentence


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["-mw", "0"], "--mask-width"),
        (["-mw", "-3"], "--mask-width"),
        (["-mp", "0"], "--mask-probability 0"),
        (["-mp", "1"], "--mask-probability 1"),
        (["-mp", "1.5"], "--mask-probability"),
        (["-nn", "0"], "--num-negatives"),
        (["-lt", "0"], "--logit-temp"),
        (["-lt", "0.001"], "--logit-temp"),
        (["-lt", "-1"], "--logit-temp"),
        (["--negatives", "some"], "--negatives"),
        (["--warmup", "-1"], "--warmup"),
        (["-N", "0"], "--epochs 0"),
        (["-s", "[1,16,0,1 Cr3,3,6 S1(1x0)1,3 Lbx4 O1c5]"], "output layer"),
        (["-s", "[1,16,0,1 Cr3,3,6 S1(1x0)1,3]"], "no recurrent layer"),
        (["-s", "[1,16,0,1 Cr3,3,6 S1(1x0)1,3 Lbx4 Mp1,2 Lbx4]"], "other columns"),
        (["-i", "none.safetensors", "--resume", "run"], "--load and --resume"),
        (["-i", "none.safetensors"], "none.safetensors"),
        (["--codec", "c.json"], "--codec"),
    ],
)
def test_options_that_cannot_be(
    images: list[Path], tmp_path: Path, arguments: list[str], mentions: str
) -> None:
    """Each would otherwise end in a traceback, or in a run that learns nothing."""
    spec = [] if "-s" in arguments or "-i" in arguments else ["-s", SPEC]
    assert mentions in refusal(tmp_path, "-f", "path", *spec, *arguments, *images)


def test_a_mask_wider_than_the_shortest_line(images: list[Path], tmp_path: Path) -> None:
    """Which line, how wide it is, and what to do; whichever side it is on."""
    short = tmp_path / "short.png"
    Image.new("L", (24, 16), 255).save(short)
    sentence = refusal(tmp_path, "-f", "path", "-s", SPEC, "-mw", 8, "--pad", 0, *images, short)
    assert "--mask-width 8: 1 training line is narrower" in sentence
    assert "6 columns" in sentence
    assert "short.png" in sentence
    (tmp_path / "held.txt").write_text(str(short))
    options = ["-f", "path", "-s", SPEC, "-mw", 8, "--pad", 0, "-e", tmp_path / "held.txt"]
    sentence = refusal(tmp_path / "held", *options, *images)
    assert "1 validation line is narrower" in sentence


def test_data_without_images(images: list[Path], tmp_path: Path) -> None:
    """Texts alone, pages without their image or without lines: there is nothing to see."""
    text = tmp_path / "a.gt.txt"
    text.write_text("text")
    assert "Nothing to compile" in refusal(tmp_path / "1", "-f", "path", "-s", SPEC, text)
    page = tmp_path / "0001.xml"
    shutil.copy(images[0].parent / "sample" / "alto" / "0001.xml", page)
    sentence = refusal(tmp_path / "2", "-f", "alto", "-s", SPEC, page)
    assert "Nothing to compile (missing image)" in sentence
    assert "No training data given" in refusal(tmp_path / "3", "-f", "path", "-s", SPEC)


def test_a_spec_that_is_not_that_of_the_weights(images: list[Path], tmp_path: Path) -> None:
    """The network of the weights would be trained in place of the one asked for."""
    done = invoke("pretrain", *FEW, "-f", "path", "-s", SPEC, "-o", tmp_path / "done", *images)
    assert done.exit_code == 0, done.output
    (weights,) = (tmp_path / "done").glob("best_*")
    other = SPEC.replace("Lbx4", "Lbx5")
    assert "--spec" in refusal(tmp_path, "-f", "path", "-s", other, "-i", weights, *images)
    resumed = invoke("train", "--resume", tmp_path / "done", "-f", "path", *with_text(tmp_path))
    assert resumed.exit_code == 2
    assert "ketos pretrain" in resumed.stderr
    for again in (("--resume", tmp_path / "done"), ("--resume", "auto", "-o", tmp_path / "done")):
        resumed = invoke("train", *again)
        assert resumed.exit_code == 2
        assert "a run of `ketos pretrain`, which `ketos train` cannot go on with" in resumed.stderr
