"""`ketos launch`: the command parsed before anything runs, frozen with absolute paths, swept, described."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from distrib.cli.main import ketos
from distrib.config.experiment import read_experiment
from distrib.config.launching import time_limit_minutes
from distrib.errors import InputError


def _launch(*words: object, config: Path | None = None) -> Result:
    top = [] if config is None else ["--config", str(config)]
    return CliRunner().invoke(ketos, [*top, "launch", *map(str, words)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _frozen(output: str, tmp_path: Path) -> Path:
    path = tmp_path / "frozen.yml"
    path.write_text(output.partition("launch/experiment.yml\n")[2], encoding="utf-8")
    return path


def test_the_dry_run_shows_all_options_with_absolute_paths(here: Path) -> None:
    """A process on another machine has another working folder, and a queue may hold a job for days."""
    text = "precision: bf16-mixed\ntrain:\n  lrate: 2e-3\n  epochs: 7\n"
    (here / "e.yml").write_text(text, encoding="utf-8")
    words = ["local", "--procs-per-node", 2, "--dry-run", "--", "train", "-f", "binary", "-N", 9, "a.arrow"]
    result = _launch(*words, "s3://bucket/b.arrow", config=here / "e.yml")
    assert result.exit_code == 0, result.output
    assert "2 process(es) on this machine" in result.output
    frozen = read_experiment(_frozen(result.output, here))
    train = frozen.sections["train"]
    assert frozen.globals["precision"] == "bf16-mixed"
    assert (train["lrate"], train["epochs"]) == (2e-3, 9)
    assert train["ground_truth"] == [str(here / "a.arrow"), "s3://bucket/b.arrow"]
    assert (train["resume"], train["checkpoint_path"]) == ("auto", str(here / "model"))
    assert not any(path.name == "model" for path in here.iterdir())


def test_resources_stand_in_the_experiment_file_and_the_command_line_wins(here: Path) -> None:
    text = "launch:\n  procs_per_node: 4\n  account: physics\n  max_restarts: 7\n"
    (here / "e.yml").write_text(text, encoding="utf-8")
    result = _launch("local", "--dry-run", "train", "a.xml", config=here / "e.yml")
    assert "4 process(es)" in result.output
    result = _launch("local", "--procs-per-node", 3, "--dry-run", "train", "a.xml", config=here / "e.yml")
    assert "3 process(es)" in result.output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["local", "--"], "no command to launch"),
        (["local", "--", "trian", "x"], "did you mean `train`?"),
        (["local", "--", "convert", "x"], "cannot be launched"),
        (["local", "--", "train", "--epohcs", "3", "x"], "No such option"),
        (["local", "--", "train", "-N", "x", "y"], "not a valid integer"),
        (["local", "--nodes", "0", "--", "train", "x"], "must be at least 1"),
        (["local", "--nodes", "2", "--", "train", "x"], "a local launch has one machine"),
        (["local", "--gpus-per-node", "8", "--", "train", "x"], "this machine has"),
        (["local", "--gpus-per-node", "1", "--procs-per-node", "2", "--", "train", "x"], "cannot share"),
        (["local", "--cpus-per-proc", "4096", "--", "train", "x"], "cores and this machine has"),
        (["local", "--env", "A", "--", "train", "x"], "must be KEY=VALUE"),
        (["local", "--time", "soon", "--", "train", "x"], "is no time limit"),
        (["local", "--time", "0", "--", "train", "x"], "leaves no time"),
        (["local", "--name", "a/b", "--", "train", "x"], "is no name for a job"),
        (["local", "--sweep", "lrate", "--", "train", "x"], "OPTION=VALUE"),
        (["local", "--sweep", "lrat=1,2", "--", "train", "x"], "did you mean `lrate`?"),
        (["local", "--sweep", "lrate=1,1", "--", "train", "x"], "names something twice"),
        (["local", "--sweep", "lrate=1,x", "--", "train", "x"], "must be a number"),
        (["local", "--detach", "--sweep", "lrate=1,2", "--", "train", "x"], "one run after the other"),
        (["local", "--run-dir", "a", "--", "train", "-o", "b", "x"], "are two run directories"),
        (["slurm", "--min-nodes", "3", "--nodes", "2", "--", "train", "x"], "is more than --nodes"),
        (["status", "nowhere"], "nothing was launched there"),
        (["cancel", "nowhere"], "nothing was launched there"),
        (["logs", "nowhere"], "nothing was launched there"),
        (["wait", "nowhere"], "nothing was launched there"),
    ],
)
def test_bad_words_end_with_a_sentence_before_anything_is_there(
    words: list[str], sentence: str, here: Path
) -> None:
    result = _launch(*words)
    assert result.exit_code == 2, result.output
    assert sentence in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(here.iterdir())


def test_a_sweep_has_a_directory_for_each_combination(here: Path) -> None:
    words = ["--sweep", "lrate=1e-3,3e-4", "--sweep", "seed=1,2", "--dry-run", "--", "train", "-o", "s", "x"]
    result = _launch("local", *words)
    assert result.exit_code == 0, result.output
    for name in ("lrate=1e-3,seed=1", "lrate=1e-3,seed=2", "lrate=3e-4,seed=1", "lrate=3e-4,seed=2"):
        assert str(here / "s" / name / "launch") in result.output


def test_what_begins_a_run_is_not_frozen(here: Path) -> None:
    """A restart must go on where the run was, not where it once began."""
    words = ["train", "--resume", "old/step_3.ckpt", "--resume-anyway", "-o", "new", "x"]
    result = _launch("local", "--dry-run", "--", *words)
    assert f"--resume {here}/old/step_3.ckpt --resume-anyway" in result.output
    train = read_experiment(_frozen(result.output, here)).sections["train"]
    assert (train["resume"], train["resume_anyway"]) == ("auto", False)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("1:30", 2), ("02:00:00", 120), ("1-0", 1440), ("2-12:30", 3630), ("1-00:00:01", 1441)],
)
def test_time_limits_are_read_as_slurm_writes_them(text: str, minutes: int) -> None:
    assert time_limit_minutes(text) == minutes


def test_a_time_limit_that_is_none_is_refused() -> None:
    with pytest.raises(InputError):
        time_limit_minutes("1:2:3:4")


def test_what_begins_a_run_may_stand_in_the_experiment_file(here: Path) -> None:
    (here / "e.yml").write_text("train:\n  resume: old/step_3.ckpt\n", encoding="utf-8")
    result = _launch("local", "--run-dir", "new", "--dry-run", "--", "train", "x", config=here / "e.yml")
    assert f"--resume {here}/old/step_3.ckpt" in result.output
    train = read_experiment(_frozen(result.output, here)).sections["train"]
    assert (train["resume"], train["checkpoint_path"]) == ("auto", str(here / "new"))


def test_values_of_a_sweep_may_hold_commas_in_brackets(here: Path) -> None:
    words = ["--sweep", "spec=[1,16,0,1 Lbx8],[1,16,0,1 Lbx9]", "--sweep", "author=yes,on", "--dry-run"]
    result = _launch("local", *words, "--", "train", "-o", "s", "x")
    assert result.exit_code == 0, result.output
    assert result.output.count("author: 'yes'") == 2
    assert result.output.count("spec: '[1,16,0,1 Lbx9]'") == 2


@pytest.mark.parametrize(
    "sweep", ["optimizer=Adam,@x", "batch_size=2,[3", "checkpoint_path=a,b", "resume=a,b"]
)
def test_values_that_an_option_does_not_take_are_refused(sweep: str, here: Path) -> None:
    result = _launch("local", "--sweep", sweep, "--dry-run", "--", "train", "x")
    assert result.exit_code == 2, result.output
    assert "Unexpected" not in result.output


def test_a_word_of_the_command_may_be_the_name_of_the_program(here: Path) -> None:
    result = _launch("local", "--dry-run", "--", "ketos", "train", "-o", "ketos", "ketos")
    train = read_experiment(_frozen(result.output, here)).sections["train"]
    assert train["checkpoint_path"] == str(here / "ketos")
    assert train["ground_truth"] == [str(here / "ketos")]


def test_a_description_of_a_debug_launch_runs_nothing(here: Path) -> None:
    result = _launch("local", "--debug", "--dry-run", "--", "train", "x")
    assert result.exit_code == 0
    assert "1 process" in result.output
    assert "without --sweep" in _launch("local", "--debug", "--sweep", "seed=1,2", "--", "train", "x").output
