"""Every file in configs/ can be used as its first lines say, and trains what it is meant for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from distrib.cli.main import ketos
from distrib.config import sections
from distrib.config.experiment import read_experiment
from distrib.config.values import make_section
from distrib.ground_truth.sample import write_sample
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import RecognitionModel, load_weights
from distrib.training.options import check_options
from distrib.training.preparation import text_pipeline
from distrib.training.reading import reading_of

from ..training.forked import shared
from .right_to_left_lines import TEXTS, write_lines

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yml"))
TINY = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16]"

each = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def config(name: str) -> Path:
    return ROOT / "configs" / f"{name}.yml"


def options(name: str) -> sections.Train:
    return make_section(sections.Train, "train", read_experiment(config(name)).sections["train"])


def train(name: str, directory: Path, *more: object, processes: int = 1) -> RecognitionModel:
    """Train an epoch as ``name`` says, but a tiny network on the CPU; what is exported."""
    small = ["-s", TINY, "-q", "fixed", "-N", 1, "-F", 1, "-o", directory]
    top = ["--config", config(name), "-d", "cpu", "--workers", 1, "--threads", 1]
    shared().run(*top, "train", *small, *more, processes=processes)
    (weights,) = directory.glob("best_*.safetensors")
    return load_weights(weights)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few printed lines, and two pages in ALTO."""
    directory = tmp_path_factory.mktemp("sample") / "sample"
    write_sample(directory, pairs=24, pages=4)
    return directory


@pytest.fixture(scope="module")
def base(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as print.yml says."""
    directory = tmp_path_factory.mktemp("base") / "run"
    train("print", directory, "-f", "path", *sorted((sample / "lines").glob("*.png")))
    return directory


def test_the_usual_cases_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {
        "print",
        "handwriting",
        "right_to_left",
        "fine_tuning",
        "pretrain",
        "large_zero3",
        "tiny",
    }


@each
def test_the_commands_in_the_first_lines_are_commands(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that was renamed, or a file that was, would leave a reader with a command that fails."""
    monkeypatch.chdir(ROOT)
    comment = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert comment is not None
    said = [line[1:].strip() for line in comment[0].splitlines()]
    commands = [shlex.split(line)[1:] for line in said if line.startswith("ketos ")]
    assert not said[0].startswith("ketos "), "for whom is it?"
    assert any(words[:2] == ["--config", f"configs/{path.name}"] for words in commands)
    for words in commands:
        if "launch" in words:
            # The command to launch is a complete one with the globals before it.
            words = words[: words.index("launch")] + words[words.index("--") + 1 :]
        done = CliRunner().invoke(ketos, [*words, "--dump-config"])
        assert done.exit_code == 0, done.output


@each
def test_every_section_holds_options_that_can_be_together(path: Path) -> None:
    """A file that asks for what is not built, or for what contradicts itself, would stop at once."""
    experiment = read_experiment(path)
    chosen = make_section(sections.Globals, "", experiment.globals)
    check_options(make_section(sections.Train, "train", experiment.sections["train"]), chosen)
    for name, section in {"test": sections.Test, "pretrain": sections.Pretrain}.items():
        make_section(section, name, experiment.sections.get(name, {}))


def test_print_trains_on_line_pairs(base: Path, sample: Path) -> None:
    (weights,) = base.glob("best_*.safetensors")
    texts = "".join(path.read_text(encoding="utf-8") for path in (sample / "lines").glob("*.gt.txt"))
    assert set(load_weights(weights).codec.c2l) <= set(texts)


def test_handwriting_trains_on_pages_and_holds_back_whole_ones(sample: Path, tmp_path: Path) -> None:
    pages = sorted((sample / "alto").glob("*.xml"))
    model = train("handwriting", tmp_path / "run", "-f", "xml", *pages)
    assert model.seg_type == "baselines"
    # NFD: letters with their marks apart, or rare pairs would each be a character to learn.
    assert not {character for character in model.codec.c2l if character in "éèàçüöäâêîôûæ"} - {"æ"}
    assert "\u0301" in model.codec.c2l


@pytest.mark.real
@pytest.mark.slow
def test_handwriting_trains_on_real_manuscripts(real_data: Path, tmp_path: Path) -> None:
    pages = sorted((real_data / "hand-fr-page-alto").glob("*.alto.xml"))
    model = train("handwriting", tmp_path / "run", "-f", "xml", *pages)
    assert model.seg_type == "baselines"


def test_right_to_left_trains_on_hebrew(tmp_path: Path) -> None:
    model = train("right_to_left", tmp_path / "run", "-f", "path", *write_lines(tmp_path / "lines", 2))
    assert set("אבדהוי") <= set(model.codec.c2l)


@pytest.mark.real
@pytest.mark.slow
def test_right_to_left_trains_on_real_arabic(real_data: Path, tmp_path: Path) -> None:
    lines = sorted((real_data / "arabic-lines").glob("*.png"))[:24]
    model = train("right_to_left", tmp_path / "run", "-f", "path", *lines)
    assert set("الم") <= set(model.codec.c2l)


def test_right_to_left_learns_what_stands_from_left_to_right_in_the_image() -> None:
    """In reading order, or with the direction of the first letter, the network could learn nothing of it."""
    learn = text_pipeline(options("right_to_left"))
    mixed = next(text for text in TEXTS if text.startswith("Genesis"))
    assert learn(TEXTS[0]) == TEXTS[0][::-1]
    assert learn(mixed).endswith("Genesis")
    assert learn("(אב) 14") == "14 (בא)"


def test_right_to_left_is_tested_as_it_was_trained() -> None:
    """Otherwise every line would count as wrong."""
    experiment = read_experiment(config("right_to_left"))
    tested = make_section(sections.Test, "test", experiment.sections["test"])
    assert reading_of(tested).pipeline == text_pipeline(options("right_to_left"))


def test_fine_tuning_keeps_the_network_and_adds_characters(base: Path, sample: Path, tmp_path: Path) -> None:
    (weights,) = base.glob("best_*.safetensors")
    lines = []
    for image in sorted((sample / "lines").glob("*.png"))[:8]:
        lines.append(tmp_path / image.name)
        lines[-1].write_bytes(image.read_bytes())
        text = image.with_suffix("").with_suffix(".gt.txt").read_text(encoding="utf-8").strip()
        lines[-1].with_suffix(".gt.txt").write_text(text + "Ж", encoding="utf-8")
    tuned = train("fine_tuning", tmp_path / "run", "-i", weights, "-f", "path", *lines)
    before = load_weights(weights)
    assert set(tuned.codec.c2l) >= {*before.codec.c2l, "Ж"}
    assert tuned.network.input_shape == before.network.input_shape


@pytest.mark.slow
def test_tiny_trains(sample: Path, tmp_path: Path) -> None:
    train("tiny", tmp_path / "run", "-f", "path", *sorted((sample / "lines").glob("*.png"))[:8])


def test_pretraining_then_training_as_its_first_lines_say(sample: Path, tmp_path: Path) -> None:
    images = sorted((sample / "lines").glob("*.png"))[:8]
    small = ["-s", TINY, "-q", "fixed", "-N", 1, "-B", 4, "-f", "path"]
    for words in (
        ["pretrain", *small, "-o", tmp_path / "pretrained"],
        ["train", *small, "-o", tmp_path / "run", "-i"],
    ):
        if words[-1] == "-i":
            words += (tmp_path / "pretrained").glob("best_*.safetensors")
        top = ["--config", config("pretrain"), "-d", "cpu", "--workers", 0, "--threads", 1]
        done = CliRunner().invoke(ketos, [str(word) for word in (*top, *words, *images)])
        assert done.exit_code == 0, done.output


def test_pretraining_needs_lines_without_text() -> None:
    """They are what it is for, and `ketos compile` leaves them out unless told."""
    assert read_experiment(config("pretrain")).sections["compile"] == {"skip_empty_lines": False}


def test_the_large_network_has_a_hundred_million_parameters() -> None:
    with torch.device("meta"):
        network = VGSLNetwork(recognition_spec(options("large_zero3").spec, 200))
    assert sum(each.numel() for each in network.parameters()) == pytest.approx(100e6, rel=0.05)


def test_the_large_run_is_cut_alike_on_any_number_of_processes() -> None:
    """By pixels alone a step would grow with the processes, and the run change when nodes are lost."""
    chosen = options("large_zero3")
    assert chosen.global_batch_size
    assert chosen.batch_size == 0
    assert chosen.batch_pixels


@pytest.mark.slow
@pytest.mark.deepspeed
def test_the_large_run_trains_as_two_processes(sample: Path, tmp_path: Path) -> None:
    pages = sorted((sample / "alto").glob("*.xml")) + sorted((sample / "page").glob("*.xml"))
    train("large_zero3", tmp_path / "run", "-f", "xml", "--global-batch-size", 8, *pages, processes=2)
    # Divided state: the checkpoint of more than one process is a folder.
    assert (tmp_path / "run" / "last.ckpt").is_dir()
