"""From the words of `ketos launch` to plans: the command parsed as if it were run, and frozen."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import yaml

from distrib.cli.options import Invocation, given_values, resolved
from distrib.config.experiment import dump_experiment, with_absolute_paths
from distrib.config.fields import FieldType, types_of
from distrib.config.launching import LAUNCHES, Launch, Target, environment_of, time_limit_minutes
from distrib.config.sections import SECTIONS, Globals
from distrib.config.values import make_section, nearest
from distrib.errors import InputError
from distrib.files import write_error, written_whole
from launchers.plan import RESUMING, LaunchPlan

_NOT_SWEPT = ("checkpoint_path", "output", "resume", "resume_anyway", "steal_lease")
COMMANDS = ("compile", "pretrain", "train", "test")
SWEEP = "sweep.json"
"""Lists the run directories of a sweep, in its own directory."""


@dataclass(frozen=True, kw_only=True)
class ParsedCommand:
    """The command to launch with its options, complete, and the words that only begin a run."""

    name: str
    globals_: Globals
    values: Any
    first: tuple[str, ...] = ()
    output: Path | None = None
    """The run directory where it was given, not that of a run to go on with."""

    def text(self) -> str:
        """The experiment file of all processes."""
        return dump_experiment(self.globals_, self.name, with_absolute_paths(self.values))


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A plan, and the experiment file that goes with it."""

    plan: LaunchPlan
    experiment: str

    def keep(self) -> None:
        """Write the experiment where the processes look for it. Raises KetosError."""
        path = self.plan.experiment
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(self.experiment.encode())
        except OSError as error:
            raise write_error(path, error) from error


def launch_options(context: click.Context, target: Target) -> Launch:
    """The options of a target: those of the command line over the ``launch:`` section over defaults."""
    invocation: Invocation = context.obj
    section = LAUNCHES[target]
    known = types_of(section)
    layer = {
        key: value for key, value in invocation.experiment.sections.get("launch", {}).items() if key in known
    }
    options = make_section(section, "launch", layer, given_values(context, section))
    environment_of(options.env)
    if options.time is not None:
        time_limit_minutes(options.time)
    fewest = getattr(options, "min_nodes", None)
    if fewest is not None and fewest > options.nodes:
        raise InputError(f"--min-nodes {fewest}: is more than --nodes {options.nodes}; correct one of them.")
    if options.gpus_per_node and (options.procs_per_node or 1) > options.gpus_per_node:
        raise InputError(
            f"--procs-per-node {options.procs_per_node}: processes cannot share the {options.gpus_per_node} "
            "GPU(s) of --gpus-per-node; give as many GPUs as processes."
        )
    return options


def parsed_command(context: click.Context, words: Sequence[str]) -> ParsedCommand:
    """The command after ``--``, parsed by its own options, as `ketos` itself would.

    Raises InputError, or click's errors of usage, where `ketos` would not take it.
    """
    root = context.find_root()
    words = list(words)
    if words[:1] == ["ketos"]:
        del words[0]
    if not words:
        raise InputError("There is no command to launch; give one after --, such as `-- train DATA`.")
    name = words[0]
    if name not in COMMANDS:
        raise InputError(
            f"`{name}` cannot be launched{nearest(name, COMMANDS)}; give one of {', '.join(COMMANDS)} "
            "after --, with options of all commands, such as --config, before `launch`."
        )
    group = cast(click.Group, root.command)
    command = group.get_command(root, name)
    assert command is not None
    with command.make_context(name, words[1:], parent=root) as own:
        in_file = cast(Invocation, root.obj).experiment.sections.get(name, {})
        given = {**in_file, **given_values(own, SECTIONS[name])}
        globals_, values = resolved(own, name)
    return _neutral(ParsedCommand(name=name, globals_=globals_, values=values), given)


def _neutral(command: ParsedCommand, given: Mapping[str, Any]) -> ParsedCommand:
    """Processes go on with what is there, and take over from the dead; what begins a run stands apart."""
    if command.name not in RESUMING:
        return command
    first: list[str] = []
    resume = given.get("resume")
    if resume is not None and str(resume) != "auto":
        first += ["--resume", str(Path(resume).absolute())]
    if command.values.resume_anyway:
        first.append("--resume-anyway")
    values = dataclasses.replace(command.values, resume=Path("auto"), resume_anyway=False, steal_lease=True)
    output = Path(given["checkpoint_path"]) if "checkpoint_path" in given else None
    return dataclasses.replace(command, values=values, first=tuple(first), output=output)


def plans_of(options: Launch, target: Target, command: ParsedCommand) -> tuple[Path | None, list[PlannedRun]]:
    """A plan, or one for each combination of ``--sweep`` and the directory that these are in."""
    combinations = list(_combinations(options.sweep))
    base = _run_dir(options, command)
    if combinations == [{}]:
        return None, [_planned(options, target, command, base)]
    runs = []
    for overrides in combinations:
        label = ",".join(f"{key}={value}" for key, value in overrides.items())
        if len(label) > 200 or "/" in label:
            raise InputError(f"--sweep {label}: makes no name for a directory; use shorter values without /.")
        runs.append(_planned(options, target, _overridden(command, overrides), base / label))
    return base, runs


def keep_sweep(directory: Path, runs: Sequence[PlannedRun]) -> None:
    """List the run directories of a sweep in its directory. Raises KetosError."""
    path = directory / SWEEP
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps([str(each.plan.run_dir) for each in runs], indent=1).encode())
    except OSError as error:
        raise write_error(path, error) from error


def forget_sweep(run_dir: Path) -> None:
    """A plain launch takes the place of a sweep in its directory."""
    (run_dir / SWEEP).unlink(missing_ok=True)


def sweep_runs(directory: Path) -> list[Path]:
    """The run directories that a sweep's directory lists; the directory itself where it is none."""
    try:
        listed = json.loads((directory / SWEEP).read_bytes())
        return [Path(each) for each in listed]
    except FileNotFoundError:
        return [directory]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{directory / SWEEP}: cannot be read ({error}); launch the sweep again.") from None


def _planned(options: Launch, target: Target, command: ParsedCommand, run_dir: Path) -> PlannedRun:
    if command.name in RESUMING:
        values = dataclasses.replace(command.values, checkpoint_path=run_dir)
        command = dataclasses.replace(command, values=values)
    plan = LaunchPlan(
        target=target,
        name=_name(options, command),
        run_dir=run_dir,
        command=command.name,
        folder=Path.cwd(),
        python=_program(options),
        options=options,
        first=command.first,
    )
    return PlannedRun(plan=plan, experiment=command.text())


def _name(options: Launch, command: ParsedCommand) -> str:
    name = options.name or f"ketos-{command.name}"
    if not name.isprintable() or "/" in name or name.startswith((".", "-")):
        raise InputError(f"--name {name}: is no name for a job; use letters, digits and hyphens.")
    return name


def _program(options: Launch) -> str:
    """A path is made absolute; a bare name is looked for where it runs."""
    program = options.python or sys.executable
    return str(Path(program).absolute()) if "/" in program else program


def _run_dir(options: Launch, command: ParsedCommand) -> Path:
    if command.name not in RESUMING:
        return (options.run_dir or Path("launches") / _name(options, command)).absolute()
    output = Path(command.values.checkpoint_path).absolute()
    if options.run_dir is None:
        return output
    chosen = options.run_dir.absolute()
    if command.output is not None and command.output.absolute() != chosen:
        output = command.output
        raise InputError(f"--run-dir {chosen} and -o {output}: are two run directories; give one of them.")
    return chosen


def _combinations(sweep: Sequence[str]) -> Iterator[dict[str, str]]:
    axes: dict[str, list[str]] = {}
    for text in sweep:
        key, equals, values = text.partition("=")
        parts = _values(values)
        if not equals or not key.isidentifier() or not all(parts):
            raise InputError(f"--sweep {text}: must be OPTION=VALUE,VALUE,… with an option's name in YAML.")
        if key in axes or len(set(parts)) < len(parts):
            raise InputError(f"--sweep {text}: names something twice; give each option and value once.")
        if key in _NOT_SWEPT:
            raise InputError(f"--sweep {text}: each run of a sweep has its own; sweep another option.")
        axes[key] = parts
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))


def _values(text: str) -> list[str]:
    """The values between the commas that are in no brackets, such as those of a network's specification."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _overridden(command: ParsedCommand, overrides: Mapping[str, str]) -> ParsedCommand:
    """The command with other values of some options, be they its own or those of all commands."""
    own, top = types_of(SECTIONS[command.name]), types_of(Globals)
    for key in overrides:
        if key not in own and key not in top:
            raise InputError(
                f"--sweep {key}=…: is no option of `{command.name}`{nearest(key, [*own, *top])}; use its "
                "name in experiment files (--dump-config shows them)."
            )
    raw = {key: _parsed(value, own.get(key) or top[key]) for key, value in overrides.items()}
    values: Any = make_section(
        SECTIONS[command.name],
        command.name,
        _fields(command.values),
        {key: value for key, value in raw.items() if key in own},
    )
    globals_ = make_section(
        Globals, "", _fields(command.globals_), {key: value for key, value in raw.items() if key not in own}
    )
    return dataclasses.replace(command, values=values, globals_=globals_)


def _parsed(text: str, field_type: FieldType) -> Any:
    """A value as YAML would read it; texts and paths are taken as they are."""
    if field_type.base in (str, Path):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # which the option's type then refuses


def _fields(section: Any) -> dict[str, Any]:
    return {item.name: getattr(section, item.name) for item in dataclasses.fields(section)}
