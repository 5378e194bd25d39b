"""TensorBoard and Weights & Biases: what is logged stands there once, and a log never ends a run."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from distrib.config.learning import Pretrain, Train
from distrib.errors import InputError
from distrib.ground_truth.network_input import NetworkInput
from distrib.stream.lines import open_collection
from distrib.training.loggers import Log, ShownLine, check_logger, open_log
from distrib.training.run_log import is_logged
from distrib.training.shown_lines import Readings, ShownLines

from .conftest import TINY_SPEC
from .forked import Harm, Server

SCORES = {"train_loss": 2.0, "val_accuracy": 0.5, "val_word_accuracy": 0.25}
RUNS = pytest.mark.xdist_group("loggers")


def opened(
    directory: Path,
    logger: str = "tensorboard",
    *,
    resumed: int | None = None,
    same: bool = True,
    environ: Mapping[str, str] | None = None,
    failures: list[str] | None = None,
    log_dir: Path | None = None,
) -> Log:
    directory.mkdir(exist_ok=True)
    log = open_log(
        Train(pl_logger=logger, log_dir=log_dir),  # type: ignore[arg-type]
        directory,
        experiment="seed: 3\ntrain:\n  lrate: 0.5\n",
        resumed=resumed,
        same=same,
        environ=environ or {},
        on_failure=pytest.fail if failures is None else failures.append,
    )
    assert log is not None
    return log


def line(prediction: str = "*lïne*") -> ShownLine:
    image = np.full((1, 8, 30), 200, dtype=np.uint8)
    return ShownLine(number=1, image=image, truth="# line", prediction=prediction)


def steps(log: Log, first: int, last: int, value: float = 1.0) -> None:
    log.steps([(step, {"lrate": value}) for step in range(first, last + 1)])


def events(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of it."""
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    found = events(folder).Tensors(name)
    return [(event.step, round(float(make_ndarray(event.tensor_proto)), 6)) for event in found]


def texts(folder: Path, name: str) -> list[tuple[int, str]]:
    found = events(folder).Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def images(folder: Path, name: str) -> list[tuple[int, int, int]]:
    """(step, width, height)."""
    found = [(event.step, event.tensor_proto.string_val) for event in events(folder).Tensors(name)]
    return [(step, int(width), int(height)) for step, (width, height, _) in found]


# Which steps.


@given(st.integers(1, 10**12))
def test_a_log_does_not_grow_with_the_run(step: int) -> None:
    digits = len(str(step))
    assert is_logged(step) == (digits <= 3 or step % 10 ** (digits - 3) == 0)


def test_each_power_of_ten_has_equally_many_steps() -> None:
    assert sum(map(is_logged, range(1, 1000))) == 999
    assert sum(map(is_logged, range(1000, 10_000))) == 900
    assert sum(map(is_logged, range(10_000, 100_000))) == 900


# TensorBoard.


def test_tensorboard_shows_figures_images_and_texts(tmp_path: Path) -> None:
    log = opened(tmp_path / "run")
    steps(log, 1, 3)
    log.validation(3, SCORES, [line()])
    log.validation(6, SCORES, [line("line")])
    log.close()
    folder = tmp_path / "run" / "tensorboard"
    assert scalars(folder, "lrate") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert scalars(folder, "val_accuracy") == [(3, 0.5), (6, 0.5)]
    assert images(folder, "line_1") == [(3, 30, 8)]
    # As code, or Markdown would make a heading of it.
    assert texts(folder, "line_1")[0] == (3, "    truth       # line\n    prediction  *lïne*")
    assert "lrate: 0.5" in texts(folder, "experiment")[0][1]


def test_steps_done_again_stand_in_tensorboard_once(tmp_path: Path) -> None:
    """A killed run goes on from its last checkpoint, before the last steps that it had logged."""
    log = opened(tmp_path / "run")
    steps(log, 1, 4)
    log.validation(4, SCORES, [line()])
    steps(log, 5, 8)
    log.validation(8, SCORES, [line()])
    # Gone on from step 4, once with the validation there still to come, and once without.
    for validated in (True, False):
        log = opened(tmp_path / "run", resumed=4)
        if validated:
            log.validation(4, SCORES, [line()])
        steps(log, 5, 9, 2.0)
        log.validation(8, {**SCORES, "val_accuracy": 0.75}, [line()])
        log.close()
        folder = tmp_path / "run" / "tensorboard"
        assert [step for step, _ in scalars(folder, "lrate")] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert scalars(folder, "lrate")[4] == (5, 2.0)
        assert scalars(folder, "val_accuracy") == [(4, 0.5), (8, 0.75)]
        assert [step for step, _ in texts(folder, "line_1")] == [4, 8]


def test_runs_that_share_a_log_dir_have_a_folder_each(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        opened(tmp_path / place / "run", log_dir=logs).close()
    log = opened(tmp_path / "a" / "run", resumed=1, log_dir=logs)
    steps(log, 2, 2)
    log.close()
    assert sorted(path.name for path in logs.iterdir()) == ["run", "run-2"]
    assert len(list((logs / "run").iterdir())) == 2
    assert scalars(logs / "run", "lrate") == [(2, 1.0)]


# Weights & Biases.


class FakeRun:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.finished = True

    def told(self, name: str) -> list[int]:
        return [step for step, row in self.rows if name in row]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that were begun."""
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(settings))
        return runs[-1]

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.Image = lambda pixels, caption: (pixels.shape, caption)  # type: ignore[attr-defined]
    module.Settings = lambda **named: named  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_is_offline_unless_asked_otherwise(wandb: list[FakeRun], tmp_path: Path) -> None:
    """A run would send its data away, or wait for a network that a cluster's nodes do not have."""
    opened(tmp_path / "run", "wandb").close()
    opened(tmp_path / "other", "wandb", environ={"WANDB_MODE": "online"}, log_dir=tmp_path / "logs").close()
    first, second = wandb
    assert first.settings["mode"] == "offline"
    assert first.settings["dir"] == str(tmp_path / "run")
    assert first.settings["config"] == {"seed": 3, "train": {"lrate": 0.5}}
    assert second.settings["mode"] is None  # the library reads the variable
    assert second.settings["dir"] == str(tmp_path / "logs")
    assert first.settings["id"] != second.settings["id"]
    assert first.finished


def test_wandb_has_figures_and_lines(wandb: list[FakeRun], tmp_path: Path) -> None:
    log = opened(tmp_path / "run", "wandb")
    steps(log, 1, 2)
    log.validation(2, SCORES, [line()])
    assert wandb[0].rows[:2] == [(1, {"lrate": 1.0}), (2, {"lrate": 1.0})]
    assert wandb[0].rows[2] == (2, {**SCORES, "line_1": ((8, 30, 1), "truth: # line\nprediction: *lïne*")})


def test_steps_done_again_are_told_to_wandb_once(wandb: list[FakeRun], tmp_path: Path) -> None:
    log = opened(tmp_path / "run", "wandb")
    steps(log, 1, 8)
    log.validation(8, SCORES, [])
    for environ in ({}, {"WANDB_MODE": "online"}):
        log = opened(tmp_path / "run", "wandb", resumed=4, environ=environ)
        steps(log, 5, 9)
        log.validation(8, SCORES, [])
        log.validation(9, SCORES, [])
    first, second, third = wandb
    assert first.settings["id"] == second.settings["id"] == third.settings["id"]
    assert (second.told("lrate"), second.told("val_accuracy")) == ([9], [9])
    assert third.rows == []
    assert (second.settings["resume"], third.settings["resume"]) == (None, "allow")


def test_steps_done_again_with_other_options_are_another_wandb_run(
    wandb: list[FakeRun], tmp_path: Path
) -> None:
    """A run that went astray and was taken back would show the figures that it was taken back for."""
    steps(opened(tmp_path / "run", "wandb"), 1, 8)
    steps(opened(tmp_path / "run", "wandb", resumed=8, same=False), 9, 9)
    steps(opened(tmp_path / "run", "wandb", resumed=4, same=False), 5, 9)
    first, second, third = wandb
    assert first.settings["id"] == second.settings["id"] != third.settings["id"]
    assert third.told("lrate") == [5, 6, 7, 8, 9]


def test_a_damaged_memory_of_the_log_begins_another(wandb: list[FakeRun], tmp_path: Path) -> None:
    opened(tmp_path / "run", "wandb")
    for content in ("[]", "{", '{"wandb": 3, "told": "x"}'):
        (tmp_path / "run" / "logger.json").write_text(content, encoding="utf-8")
        steps(opened(tmp_path / "run", "wandb", resumed=2), 3, 3)
        assert wandb[-1].told("lrate") == [3]


@pytest.mark.slow
def test_the_real_wandb_takes_all_of_it(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    log = opened(tmp_path / "run", "wandb")
    steps(log, 1, 2)
    log.validation(2, SCORES, [line()])
    log.close()
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
    assert list(folder.glob("files/media/images/*.png"))


# What goes wrong.


class Failing:
    """Every call of a writer fails."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise OSError(28, "No space left on device")


def test_a_log_that_fails_is_told_of_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Failing))
    failures: list[str] = []
    log = opened(tmp_path / "run", failures=failures)
    steps(log, 1, 2)
    log.validation(2, SCORES, [line()])
    log.close()
    (sentence,) = failures
    assert "No space left on device" in sentence
    assert "training goes on" in sentence


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
@pytest.mark.parametrize("section", [Train, Pretrain])
def test_a_log_dir_that_cannot_be_is_refused(section: Any, logger: str, tmp_path: Path) -> None:
    pytest.importorskip("wandb") if logger == "wandb" else None
    (tmp_path / "file").write_text("", encoding="utf-8")
    for place, words in (
        (tmp_path / "file", "file is a file; give the name of a folder"),
        (tmp_path / "file" / "below", "no file can be written there"),
        (Path("/proc/nothing"), "/proc/nothing"),
    ):
        with pytest.raises(InputError, match=words):
            check_logger(section(pl_logger=logger, log_dir=place), tmp_path / "run")
    check_logger(section(pl_logger=logger, log_dir=tmp_path / "a" / "b"), tmp_path / "run")
    check_logger(section(pl_logger=logger), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "a check leaves nothing behind"


def test_wandb_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ketos-distrib\[wandb\]'"):
        check_logger(Train(pl_logger="wandb"), tmp_path / "run")
    check_logger(Train(pl_logger="tensorboard"), tmp_path / "run")
    check_logger(Train(), Path("/proc/nothing"))


# The lines shown.


def test_shown_lines_are_those_with_the_smallest_keys(lines_arrow: Path) -> None:
    collection = open_collection([lines_arrow])
    keys = collection.index().keys
    held = np.arange(5, 45, dtype=np.int64)
    chosen = ShownLines.chosen(4, held, collection, NetworkInput(height=16))
    assert sorted(keys[list(chosen.lines)]) == sorted(keys[held])[:4]
    other = ShownLines.chosen(4, held[::-1].copy(), collection, NetworkInput(height=16))
    assert other.lines == chosen.lines
    assert len(ShownLines.chosen(99, held, collection, NetworkInput(height=16)).lines) == held.size
    image = chosen.image(chosen.lines[0])
    assert image is not None
    assert image.shape[:2] == (1, 16)
    assert image[0, 0, 0] == 255, "dark ink on white"


def test_only_lines_that_are_asked_for_are_kept() -> None:
    """A validation of a million lines would be kept in memory."""
    readings = Readings()
    readings.note([1, 2], ["a", "b"], ["x", "y"])
    assert readings.texts == {}
    readings.lines = {2, 3}
    readings.note([1, 2], ["a", "b"], ["x", "y"])
    readings.note([3], ["c"], ["z"])
    assert readings.texts == {2: ("b", "y"), 3: ("c", "z")}


# Runs.


def words(run: Path, epochs: int, *more: object) -> list[object]:
    top = ["--workers", 0, "-d", "cpu", "--seed", 3, "train", "-f", "binary", "-o", run, "-q", "fixed"]
    return [*top, "-N", epochs, "-s", TINY_SPEC, "--logger", "tensorboard", "--log-images", 3, *more]


@RUNS
@pytest.mark.slow
def test_a_run_logs_the_same_with_one_process_and_two_and_when_gone_on_with(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    server.run(*words(one, 2, "-B", 8), lines_arrow)
    server.run(*words(two, 2, "-B", 4, "--global-batch-size", 8), lines_arrow, processes=2)
    # Taken back to the end of the first epoch: the second is done again.
    (first,) = two.glob("checkpoint_00-*.ckpt")
    server.run("--workers", 0, "train", "--resume", first, "-N", 3, processes=2)
    found = [path / "tensorboard" for path in (one, two)]
    rows = [json.loads(row) for row in (one / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    assert scalars(found[0], "lrate") == [(row["step"] + 1, pytest.approx(row["lrate"])) for row in rows]
    assert scalars(found[0], "loss")[0] == (1, pytest.approx(rows[0]["loss"]))
    metrics = [json.loads(row) for row in (one / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in ("train_loss", "val_accuracy", "val_word_accuracy"):
        expected = [(row["step"], pytest.approx(row[name], rel=1e-6, abs=1e-6)) for row in metrics]
        assert scalars(found[0], name) == expected
    epoch = len(rows) // 2
    assert [step for step, _ in scalars(found[1], "lrate")] == list(range(1, 3 * epoch + 1))
    for number in (1, 2, 3):
        ours, theirs = (texts(folder, f"line_{number}") for folder in found)
        assert [step for step, _ in theirs] == [epoch, 2 * epoch, 3 * epoch]
        truths = {text.splitlines()[0] for _, text in [*ours, *theirs]}
        assert len(truths) == 1, "the lines are the same however many processes share them"
        assert images(found[1], f"line_{number}")[0][0] == epoch
    assert "line_4/text_summary" not in events(found[0]).Tags()["tensors"]
    assert len(list(found[1].iterdir())) == 2, "rank zero alone writes, one file a start"


@RUNS
def test_a_disk_that_becomes_full_does_not_end_a_run(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    full = Harm(place="distrib.training.loggers:_TensorBoardLog.steps", calls=(2,), do="full")
    printed = server.run(*words(tmp_path / "run", 2, "-B", 8), lines_arrow, harm=[full])
    assert printed.count("training goes on without it") == 1
    assert "best model" in printed
    assert "log_failed" in (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")


@RUNS
def test_a_bad_log_dir_is_refused_before_anything_is_made(
    server: Server, lines_arrow: Path, tmp_path: Path
) -> None:
    job = server.start(*words(tmp_path / "run", 1, "--log-dir", lines_arrow), lines_arrow)
    assert job.wait() == [2]
    assert "is a file" in job.errors[0]
    assert not (tmp_path / "run").exists()
