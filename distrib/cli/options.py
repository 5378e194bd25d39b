"""The command line as a view of the configuration sections: click options made from their fields."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from distrib.config.experiment import (
    ExperimentFile,
    dump_experiment,
    parse_experiment,
    refuse_other_command,
    resumed_experiment,
    run_directory_of,
    run_to_resume,
    stored_experiment,
)
from distrib.config.fields import FieldInfo, FieldType, info_of, types_of
from distrib.config.sections import SECTIONS, Globals
from distrib.config.values import make_section
from distrib.errors import InputError

_AUTO = Path("auto")
"""What ``--resume`` says for the run in ``--output``, should there be one."""

_BEGINNING = ("load", "codec")
_GOING_ON = ("resume_anyway",)
"""Options that mean nothing to a run that goes on, and to one that begins."""

_CLICK_TYPES: dict[type, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT}


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What the top of the command line said, handed to the command below it."""

    global_values: Mapping[str, Any]
    experiment: ExperimentFile

    def globals(self, stored: ExperimentFile | None = None) -> Globals:
        """The global options: command line over experiment file over those of a resumed run over defaults."""
        layers = () if stored is None else (stored.globals,)
        return make_section(Globals, "", *layers, self.experiment.globals, self.global_values)


def section_options(section: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds a click parameter for each field of ``section``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for parameter in reversed(list(_parameters(section))):
            parameters = function.__dict__.setdefault("__click_params__", [])
            parameters.append(parameter)
        return function

    return decorate


def section_command(name: str) -> Callable[[Callable[[Globals, Any], None]], click.Command]:
    """Turn ``run(globals, section)`` into the click command of the section called ``name``.

    Its docstring is the help text. ``--dump-config`` prints the resolved experiment instead of running.
    """
    section = SECTIONS[name]

    def decorate(function: Callable[[Globals, Any], None]) -> click.Command:
        @functools.wraps(function)
        @click.pass_context
        def callback(context: click.Context, /, dump_config: bool, **_: Any) -> None:
            globals_, values = resolved(context, name)
            if dump_config:
                click.echo(dump_experiment(globals_, name, values), nl=False)
                return
            function(globals_, values)

        dump = click.Option(
            ["--dump-config"], is_flag=True, help="Print the resolved experiment as YAML and stop."
        )
        command = click.command(name, short_help=(function.__doc__ or "").split("\n")[0])(callback)
        command.params = [*_parameters(section), dump, *command.params]
        return command

    return decorate


def resolved(context: click.Context, name: str) -> tuple[Globals, Any]:
    """The global options and those of the section called ``name``, from command line, experiment file and,
    where a run goes on, what that was started with."""
    invocation: Invocation = context.obj
    section = SECTIONS[name]
    layers = [invocation.experiment.sections.get(name, {}), given_values(context, section)]
    values: Any = make_section(section, name, *layers)
    stored = None
    resume, automatic = _run_to_go_on(values)
    if resume is not None:
        stored = _experiment_of(resume)
        if stored.sections:
            refuse_other_command(stored, name, resume)
        # What begins a run stands in the same command line as what goes on with it.
        layers = [_without(layer, _BEGINNING if automatic else ()) for layer in layers]
        values = make_section(section, name, stored.sections.get(name, {}), *layers)
    elif automatic:
        values = make_section(section, name, *(_without(layer, _GOING_ON) for layer in layers))
    if hasattr(values, "resume"):
        values = dataclasses.replace(values, resume=resume)
    return invocation.globals(stored), values


def _run_to_go_on(values: Any) -> tuple[Path | None, bool]:
    """The run or checkpoint that ``--resume`` means, and whether it says ``auto``: there may be none yet."""
    resume: Path | None = getattr(values, "resume", None)
    automatic = resume == _AUTO
    return (run_to_resume(values.checkpoint_path) if automatic else resume), automatic


def _without(layer: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in layer.items() if name not in names}


def _experiment_of(resume: Path) -> ExperimentFile:
    """The experiment of a run: as its directory keeps it, else as a checkpoint that was taken away does."""
    stored = stored_experiment(resume)
    if stored.sections or not resume.exists() or resume == run_directory_of(resume):
        return stored
    from distrib.runtime.checkpoints.contents import run_state
    from distrib.runtime.checkpoints.reader import open_checkpoint

    text = run_state(open_checkpoint(resume))["experiment"]
    return resumed_experiment(parse_experiment(text, resume), run_directory_of(resume))


def given_values(context: click.Context, section: type) -> dict[str, Any]:
    """The values of ``section``'s fields that stand on the command line itself, by field name."""
    given = {}
    for field in dataclasses.fields(section):
        source = context.get_parameter_source(field.name)
        if source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
            value = context.params[field.name]
            if not (info_of(field).positional and not value):
                given[field.name] = value
    return given


def require_sources(*groups: tuple[Any, ...], remedy: str) -> None:
    """Raise InputError with ``remedy`` where every group of paths is empty."""
    if not any(groups):
        raise InputError(remedy)


def _parameters(section: type) -> Iterator[click.Parameter]:
    field_types = types_of(section)
    for field in dataclasses.fields(section):
        info, field_type = info_of(field), field_types[field.name]
        if info.positional:
            yield click.Argument([field.name], nargs=-1, metavar=info.metavar)
        else:
            yield _option(field.name, field.default, info, field_type)


def _option(name: str, default: Any, info: FieldInfo, field_type: FieldType) -> click.Option:
    declarations = list(info.flags)
    if info.off_flags:
        declarations[-1] = "/".join([declarations[-1], *info.off_flags])
    shown = _shown(default, info)
    settings: dict[str, Any] = {"help": info.help + (f" [default: {shown}]" if shown else "")}
    if info.count:
        settings |= {"count": True}
    elif field_type.base is bool:
        settings |= {"is_flag": True, "default": default}
    else:
        settings |= {"type": _click_type(field_type), "metavar": info.metavar, "multiple": field_type.many}
    return click.Option([*declarations, name], **settings)


def _click_type(field_type: FieldType) -> click.ParamType[Any]:
    if field_type.choices:
        return click.Choice(list(field_type.choices))
    return _CLICK_TYPES.get(field_type.base, click.STRING)


def _shown(default: Any, info: FieldInfo) -> str:
    """The default as help shows it; switches name the flag that is on (`reorder`)."""
    if default is None or default == () or info.count:
        return ""
    if isinstance(default, bool):
        names = info.flags if default else info.off_flags
        return names[-1].lstrip("-") if names else ""
    return str(default)
