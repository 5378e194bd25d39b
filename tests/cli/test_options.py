"""The command line: one source of options, experiment files below it, errors as sentences."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from distrib.cli.main import ketos


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(ketos, list(arguments), prog_name="ketos")


def test_the_module_is_the_command() -> None:
    module = subprocess.run([sys.executable, "-m", "distrib", "--help"], capture_output=True, check=True)
    command = subprocess.run(
        [str(Path(sys.executable).parent / "ketos"), "--help"], capture_output=True, check=True
    )
    assert module.stdout == command.stdout


def test_help_is_quick() -> None:
    fastest = float("inf")
    for _ in range(5):
        # Processor time: what a busy machine does besides is not what help costs.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "distrib", "train", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        fastest = min(fastest, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert fastest < 0.35


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, distrib.cli.main; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = ["torch", "lightning", "numpy", "PIL", "pyarrow", "yaml", "rich", "scipy"]
    done = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_command_line_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "e.yml"
    text = "precision: bf16-mixed\ndevice: cpu\ntrain:\n  lrate: 1e-4\n  epochs: 7\n"
    file.write_text(text, encoding="utf-8")
    result = invoke("--config", str(file), "--precision", "32-true", "train", "-N", "9", "--dump-config")
    dumped = yaml.safe_load(result.output)
    assert (dumped["precision"], dumped["device"]) == ("32-true", "cpu")
    assert (dumped["train"]["lrate"], dumped["train"]["epochs"], dumped["train"]["lag"]) == (1e-4, 9, 10)


@pytest.mark.parametrize("command", ["compile", "train", "test", "pretrain", "convert"])
def test_a_dumped_experiment_can_be_fed_back(command: str, tmp_path: Path) -> None:
    file = tmp_path / "e.yml"
    first = invoke("--seed", "3", command, "--dump-config")
    file.write_text(first.output, encoding="utf-8")
    assert invoke("--config", str(file), command, "--dump-config").output == first.output


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--no-reorder"], "bidi_reordering", False),
        (["-n"], "normalize_whitespace", True),
        (["--no-normalize-whitespace"], "normalize_whitespace", False),
        (["-ss", "4"], "step_size", 4),
        (["-t", "a.lst", "-t", "b.lst"], "training_data", ["a.lst", "b.lst"]),
        (["x.arrow", "y.arrow"], "ground_truth", ["x.arrow", "y.arrow"]),
        (["--augment"], "augment", True),
    ],
)
def test_flags_reach_their_option(flags: list[str], key: str, value: object) -> None:
    assert yaml.safe_load(invoke("train", *flags, "--dump-config").output)["train"][key] == value


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train"], "No training data given"),
        (["compile"], "No ground truth given"),
        (["test"], "No model given"),
        (["convert"], "No checkpoint or weights file given"),
        (["train", "-B", "-1", "x"], "`train.batch_size` (-B, --batch-size) is -1; it must be at least 0."),
        (["--config", "nowhere.yml", "train"], "nowhere.yml: cannot be read"),
        (["train", "-q", "fixed", "x.xml"], "--quit fixed needs --epochs"),
        (["train", "-N", "0", "x.xml"], "--epochs 0: give a number"),
        (["train", "-q", "fixed", "-N", "0", "x.xml"], "--epochs 0: give a number"),
        (["train", "-F", "1.5", "x.xml"], "--freq 1.5: above 1 it must be a whole number"),
        (["train", "-i", "a", "--resume", "b", "x.xml"], "--load and --resume exclude each other"),
        (["-d", "abacus", "train", "x.xml"], "--device abacus: unknown"),
        (["--precision", "16-mixed", "-d", "cpu", "train", "x.xml"], "float16 needs a GPU"),
        (["--seed", "-1", "train", "x.xml"], "`seed` (-s, --seed) is -1; it must be at least 0."),
        (["train", "missing.xml"], "missing.xml"),
        (["train", "-f", "binary", "missing.arrow"], "missing.arrow"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing may be left behind"


def test_tracebacks_appear_only_on_request(tmp_path: Path) -> None:
    assert "Traceback" in invoke("-vv", "compile", str(tmp_path / "missing.xml")).output
