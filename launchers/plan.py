"""What a launch runs, where and how: made once, kept in the run directory, read by every agent."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from distrib.config.launching import LAUNCHES, Launch, Target, environment_of
from distrib.config.values import make_section
from distrib.errors import InputError
from distrib.files import write_error, written_whole
from launchers.places import experiment_file, plan_file, variables_file
from launchers.programs import module_words

RESUMING = ("train", "pretrain")
"""Commands that go on by ``--resume auto`` with what an earlier attempt has done; others find out alone."""


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A launch: the ``ketos`` command ``command`` with the options in ``experiment``, in the working folder
    ``folder``, by the interpreter ``python``, on what ``options`` ask for. All paths are absolute."""

    target: Target
    name: str
    run_dir: Path
    command: str
    folder: Path
    python: str
    options: Launch
    first: tuple[str, ...] = ()
    """Options of the command that only begin a run: attempts have them until a step has been made."""

    @property
    def experiment(self) -> Path:
        """The experiment file of all processes."""
        return experiment_file(self.run_dir)

    @property
    def processes_per_node(self) -> int:
        """Processes of a machine: as asked for, else one a GPU."""
        return self.options.procs_per_node or max(self.options.gpus_per_node, 1)

    @property
    def processes(self) -> int:
        """Processes on all machines that were asked for."""
        return self.options.nodes * self.processes_per_node

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the user wants in every process."""
        return environment_of(self.options.env)

    def words(self, *overrides: str) -> tuple[str, ...]:
        """The command line of a process, ``overrides`` being options of the command."""
        program = module_words(self.python, "distrib")
        return (*program, "--config", str(self.experiment), self.command, *overrides)


def write_plan(plan: LaunchPlan) -> None:
    """Keep a plan in its run directory. Raises KetosError with a sentence where that cannot be."""
    options = {key: _plain(value) for key, value in dataclasses.asdict(plan.options).items()}
    variables = options.pop("env")
    values = {
        "target": plan.target,
        "name": plan.name,
        "command": plan.command,
        "folder": str(plan.folder),
        "python": plan.python,
        "first": list(plan.first),
        "options": options,
    }
    path = plan_file(plan.run_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps(values, indent=1).encode())
        with written_whole(variables_file(plan.run_dir)) as file:
            os.fchmod(file.fileno(), 0o600)  # there may be passwords among them
            file.write(json.dumps(variables).encode())
    except OSError as error:
        raise write_error(path, error) from error


def read_plan(run_dir: Path) -> LaunchPlan:
    """The plan in a run directory. Raises InputError where there is none that can be read."""
    path = plan_file(run_dir)
    try:
        return _parsed(json.loads(path.read_bytes()), _variables(run_dir), run_dir.absolute())
    except FileNotFoundError:
        raise InputError(
            f"{run_dir}: nothing was launched there; give the directory that `ketos launch` named."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); launch the run again.") from None


def _variables(run_dir: Path) -> list[str]:
    """The variables of the processes; none for somebody else, who may look at the run but not start it."""
    with suppress(PermissionError):
        return [str(each) for each in json.loads(variables_file(run_dir).read_bytes())]
    return []


def _parsed(values: Any, variables: list[str], run_dir: Path) -> LaunchPlan:
    if values["target"] not in get_args(Target):
        raise ValueError(f"unknown target {values['target']!r}")
    target = cast(Target, values["target"])
    return LaunchPlan(
        target=target,
        name=str(values["name"]),
        run_dir=run_dir,
        command=str(values["command"]),
        folder=Path(values["folder"]),
        python=str(values["python"]),
        first=tuple(map(str, values["first"])),
        options=make_section(LAUNCHES[target], "launch", values["options"], {"env": variables}),
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
