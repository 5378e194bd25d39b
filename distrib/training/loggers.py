"""Logs of a run beside its directory's own: TensorBoard, and Weights & Biases, offline unless asked to be on.

A log is an extra: once training has begun, nothing that goes wrong with it ends the run. What a resumed run
does again after a kill stands in it once.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from distrib.config.learning import Learning
from distrib.errors import InputError
from distrib.files import write_error, written_whole

STATE_NAME = "logger.json"
"""Where a run directory keeps which log is the run's own."""

Image = npt.NDArray[np.uint8]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ShownLine:
    """A validation line: its number among those shown, image uint8 (C, H, W) with dark ink, and texts."""

    number: int
    image: Image
    truth: str
    prediction: str


class Log(Protocol):
    """Where figures go. ``step`` counts the global steps that were done."""

    def steps(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Add (step, figures by name) of some steps, in order; they are safe when it returns."""

    def validation(self, step: int, scores: Mapping[str, float], lines: Sequence[ShownLine]) -> None:
        """Add a validation's figures by name and lines as they were read; they are safe when it returns."""

    def close(self) -> None:
        """Nothing more will be added."""


def check_logger(options: Learning, directory: Path) -> None:
    """Raise InputError where the log of ``--logger`` could not be written. For rank zero alone."""
    if options.pl_logger is None:
        return
    if options.pl_logger == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError("--logger wandb needs the package wandb: pip install 'ketos-distrib[wandb]'.")
    folder = options.log_dir or directory / options.pl_logger
    made: list[Path] = []
    try:
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir()
            made.append(missing)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--log-dir {folder} is a file; give the name of a folder.") from None
        raise InputError(f"--logger {options.pl_logger}: {write_error(folder, error)}") from None
    finally:
        # A run that is refused for another reason has left nothing behind.
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()


def open_log(
    options: Learning,
    directory: Path,
    *,
    experiment: str,
    resumed: int | None,
    same: bool,
    environ: Mapping[str, str],
    on_failure: Callable[[str], None],
) -> Log | None:
    """The log of ``--logger``, None without one; it lies in ``--log-dir``, else in the run ``directory``.

    ``experiment`` is the resolved experiment as YAML. ``resumed`` is the number of steps done where the run
    goes on, None for a new one, and ``same`` says that it goes on with the options it had. ``environ`` may
    have WANDB_MODE. ``on_failure`` gets a sentence if the log fails, at most once.
    """
    if options.pl_logger is None:
        return None
    state = _State(directory / STATE_NAME, fresh=resumed is None)
    guarded = _Guarded(on_failure)
    if options.pl_logger == "wandb":
        guarded.begin(
            lambda: _WandbLog(
                options.log_dir or directory, directory.name, experiment, state, resumed, same, environ
            )
        )
    else:
        folder = _events_folder(options.log_dir, directory, state)
        guarded.begin(lambda: _TensorBoardLog(folder, experiment, state, resumed))
    return guarded


class _State:
    """What a run directory remembers of its log from one start to the next, in plain types by name."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._values: dict[str, Any] = {}
        if not fresh:
            # Without it the log begins anew.
            with suppress(OSError, ValueError):
                stored = json.loads(path.read_text(encoding="utf-8"))
                self._values = stored if isinstance(stored, dict) else {}

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        return value if isinstance(value, str) and value else None

    def number(self, name: str) -> int:
        """-1 where nothing is known."""
        value = self._values.get(name)
        return value if isinstance(value, int) else -1

    def keep(self, **values: str | int) -> None:
        """Raises OSError."""
        if any(self._values.get(name) != value for name, value in values.items()):
            self._values |= values
            with written_whole(self._path) as file:
                file.write(json.dumps(self._values).encode())


class _Guarded:
    """A log that is given up, with a word, as soon as it fails."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._on_failure = on_failure
        self._log: Log | None = None

    def begin(self, make: Callable[[], Log]) -> None:
        self._log = self._tried(make)

    def steps(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        if (log := self._log) is not None:
            self._tried(lambda: log.steps(rows))

    def validation(self, step: int, scores: Mapping[str, float], lines: Sequence[ShownLine]) -> None:
        if (log := self._log) is not None:
            self._tried(lambda: log.validation(step, scores, lines))

    def close(self) -> None:
        if (log := self._log) is not None:
            self._tried(log.close)
            self._log = None

    def _tried(self, action: Callable[[], Result]) -> Result | None:
        try:
            return action()
        except Exception as error:  # of whatever library; days of training do not end for a log
            self._log = None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._on_failure(
                f"The log of --logger cannot be written ({reason}); training goes on without it."
            )
            return None


class _TensorBoardLog:
    """Event files, as TensorBoard reads them."""

    def __init__(self, folder: Path, experiment: str, state: _State, resumed: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard then leaves out what earlier files of the folder say of these steps, for which it needs
        # a mark of the kind in the first file as well.
        purged = 0 if resumed is None else resumed + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purged, flush_secs=30)
        self._state = state
        # A validation right where the run goes on is done again, and not among what is left out.
        again = -1 if resumed is None else resumed
        self._validated = again if again <= state.number("validated") else -1
        self._shown: set[int] = set()
        state.keep(folder=str(folder.absolute()))
        if resumed is None:
            self._writer.add_text("experiment", _as_it_is(experiment), 0)

    def steps(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, figures in rows:
            self._add(step, figures)
        self._writer.flush()

    def validation(self, step: int, scores: Mapping[str, float], lines: Sequence[ShownLine]) -> None:
        if step == self._validated:
            return
        self._add(step, scores)
        for line in lines:
            name = f"line_{line.number}"
            if line.number not in self._shown:
                self._shown.add(line.number)
                self._writer.add_image(name, line.image, step, dataformats="CHW")
            texts = f"truth       {line.truth}\nprediction  {line.prediction}"
            self._writer.add_text(name, _as_it_is(texts), step)
        self._writer.flush()
        self._state.keep(validated=step)

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)


class _WandbLog:
    """A run of Weights & Biases, which is one however often ours is started.

    It cannot take back what it was told: of steps that are done again the first time counts. Where they are
    done with other options it begins a run of its own for them.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        experiment: str,
        state: _State,
        resumed: int | None,
        same: bool,
        environ: Mapping[str, str],
    ) -> None:
        import wandb
        import yaml

        mode = environ.get("WANDB_MODE") or "offline"  # or what the library makes of the variable
        told = state.number("told")
        known = state.text("wandb") if resumed is not None and (same or resumed >= told) else None
        self._wandb: Any = wandb
        self._told, self._validated = (told, state.number("validated")) if known else (-1, -1)
        identity = known or secrets.token_hex(8)
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            dir=str(folder),
            id=identity,
            name=name,
            project=environ.get("WANDB_PROJECT") or "ketos",
            config=yaml.safe_load(experiment),
            mode=None if environ.get("WANDB_MODE") else "offline",
            # Of a run that is not known to the server yet there is nothing to go on with.
            resume="allow" if known and mode != "offline" else None,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        self._state = state
        state.keep(wandb=identity, told=self._told, validated=self._validated)

    def steps(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, figures in rows:
            if step > self._told:
                self._run.log(dict(figures), step=step)
                self._told = step
        self._state.keep(told=self._told)

    def validation(self, step: int, scores: Mapping[str, float], lines: Sequence[ShownLine]) -> None:
        if step <= self._validated:
            return
        self._run.log({**scores, **{f"line_{line.number}": self._image(line) for line in lines}}, step=step)
        self._validated = step
        self._state.keep(validated=step)

    def close(self) -> None:
        self._run.finish()

    def _image(self, line: ShownLine) -> Any:
        caption = f"truth: {line.truth}\nprediction: {line.prediction}"
        return self._wandb.Image(np.moveaxis(line.image, 0, 2), caption=caption)


def _events_folder(log_dir: Path | None, directory: Path, state: _State) -> Path:
    """Where the events of this run go: in a folder that several runs share, each has its own."""
    if log_dir is None:
        return directory / "tensorboard"
    known = state.text("folder")
    if known is not None and Path(known).parent == log_dir.absolute():
        return Path(known)
    name, number = directory.absolute().name, 1
    folder = log_dir / name
    while folder.exists():
        number += 1
        folder = log_dir / f"{name}-{number}"
    return folder


def _as_it_is(text: str) -> str:
    """Markdown that shows a text without taking anything in it for Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
