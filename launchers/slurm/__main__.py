"""The agent in the batch step of a job: ``python -m launchers.slurm RUN_DIR`` or ``--sweep DIR TASK``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distrib.errors import InputError
from launchers.slurm.executor import run_agent
from launchers.standalone import run_alone


def main(words: list[str]) -> int:
    """Run the plan in a run directory, or that of a sweep's task; the exit code of the job."""
    if words[0] == "--sweep":
        return run_alone(lambda: task_of_sweep(Path(words[1]), words[2]), run_agent)
    return run_alone(lambda: Path(words[0]), run_agent)


def task_of_sweep(directory: Path, task: str) -> Path:
    """The run directory of a task of a job array. Raises InputError where the sweep lists none."""
    path = directory / "sweep.json"
    try:
        return Path(json.loads(path.read_bytes())[int(task)])
    except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
        raise InputError(
            f"{path}: names no run directory for task {task} ({error}); launch it again."
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
