"""Where a launch keeps its files: ``launch/`` in the run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_FOLDER: Final = "launch"


def launch_folder(run_dir: Path) -> Path:
    """The folder of everything that a launch keeps."""
    return run_dir / _FOLDER


def plan_file(run_dir: Path) -> Path:
    """What is run, where and how."""
    return launch_folder(run_dir) / "launch.json"


def experiment_file(run_dir: Path) -> Path:
    """The experiment as it was when it was launched, complete, with absolute paths."""
    return launch_folder(run_dir) / "experiment.yml"


def variables_file(run_dir: Path) -> Path:
    """Variables of the processes, for the user's own eyes."""
    return launch_folder(run_dir) / "variables.json"


def cancel_file(run_dir: Path) -> Path:
    """Its presence asks the agent, on whatever machine it is, to end the run."""
    return launch_folder(run_dir) / "cancel"


def agent_log(run_dir: Path) -> Path:
    """What an agent without a terminal prints."""
    return launch_folder(run_dir) / "agent.log"


def attempt_folder(run_dir: Path, number: int) -> Path:
    """Logs and endings of the processes of an attempt, counted from 1."""
    return launch_folder(run_dir) / "attempts" / f"{number:04}"


def last_attempt(run_dir: Path) -> int:
    """The number of the last attempt that has a folder; 0 without any."""
    numbers = [path.name for path in attempt_folder(run_dir, 0).parent.glob("[0-9]*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def rank_log(attempt: Path, rank: int) -> Path:
    """What a process of an attempt has printed, on both streams."""
    return attempt / f"rank-{rank}.log"
