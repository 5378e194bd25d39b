"""The `ketos` command: global options, experiment file, and where errors become sentences."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from distrib import __version__
from distrib.cli.compile import compile_command
from distrib.cli.convert import convert_command
from distrib.cli.display import visible
from distrib.cli.endings import leave_ending, memory_exhausted, system_cause
from distrib.cli.inspect import inspect_command
from distrib.cli.launch import launch_command
from distrib.cli.ledger import ledger_command
from distrib.cli.options import Invocation, given_values, section_options
from distrib.cli.pretrain import pretrain_command
from distrib.cli.sample import sample_command
from distrib.cli.test import test_command
from distrib.cli.train import train_command
from distrib.config.experiment import ExperimentFile, read_experiment
from distrib.config.sections import Globals
from distrib.errors import KetosError, PeerError

_INTERRUPTED = 130
_CLICK = click.ClickException | click.exceptions.Exit | click.Abort


def _failure(message: str, exit_code: int) -> click.ClickException:
    """A sentence for the user, which click prints before it exits with ``exit_code``."""
    failure = click.ClickException(_sentence(message))
    failure.exit_code = exit_code  # type: ignore[misc]
    return failure


def _sentence(message: str) -> str:
    """The message on one line and with a full stop; control characters of file names made visible."""
    line = visible(message.strip())
    return line if line.endswith((".", "?", "!")) else f"{line}."


def _system_failure(error: OSError) -> click.ClickException:
    """The sentence for a file that the system refuses, where no one nearer to it had a better one."""
    place = "" if error.filename is None else f"{error.filename}: "
    reason = (error.strerror or str(error)).lower()
    cause = system_cause(error)
    if cause == "input":
        return _failure(f"{place}{reason}; check its name and permissions.", 2)
    if cause == "unexpected":
        return _failure(
            f"{place}{reason}; start again, and where it comes again look at that disk and the network.", 1
        )
    return _failure(f"{place}{reason}; make room on this machine, or use another, and start again.", 1)


class _Ketos(click.Group):
    """Turns errors into one sentence and an exit code; tracebacks only under ``-vv``.

    A process of an attempt that a launcher made leaves there why it has ended.
    """

    def make_context(self, *arguments: Any, **named: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **named)
        except click.ClickException as error:
            leave_ending(error, error, os.environ)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BaseException as error:  # the boundary: whatever ends the command passes here
            said = _said(error, ctx)
            leave_ending(error, said, os.environ)
            if said is error:
                raise
            raise said from None


def _said(error: BaseException, context: click.Context) -> BaseException:
    """What is raised for an error, so that click prints a sentence of it and exits with the right code."""
    if isinstance(error, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return click.exceptions.Exit(_INTERRUPTED)
    if isinstance(error, PeerError):
        return click.exceptions.Exit(error.exit_code)
    if not isinstance(error, Exception) or isinstance(error, _CLICK | BrokenPipeError):
        return error
    _print_traceback(context)
    if isinstance(error, KetosError):
        return _failure(str(error), error.exit_code)
    if isinstance(error, OSError):
        return _system_failure(error)
    if memory_exhausted(error):
        detail = f" ({str(error).rstrip('.')})" if str(error) else ""
        return _failure(f"Out of memory{detail}; lessen --batch-size, --pad or --workers.", 1)
    # Whatever is left is a bug and says how to see it.
    hint = "" if context.params.get("verbose", 0) > 1 else " (ketos -vv shows where)"
    return _failure(f"Unexpected {type(error).__name__}: {error}{hint}", 1)


def _print_traceback(context: click.Context) -> None:
    if context.params.get("verbose", 0) > 1:
        traceback.print_exc(file=sys.stderr)


@click.group(cls=_Ketos, context_settings={"help_option_names": ["--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ketos")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Experiment file (YAML); the command line wins over it."
)
@section_options(Globals)
@click.pass_context
def ketos(context: click.Context, /, config: Path | None, **_: Any) -> None:
    """Train recognition models for text lines: one process, many, or a cluster."""
    experiment = read_experiment(config) if config is not None else ExperimentFile()
    context.obj = Invocation(global_values=given_values(context, Globals), experiment=experiment)
    context.obj.globals()


for _command in (
    compile_command,
    train_command,
    test_command,
    pretrain_command,
    convert_command,
    inspect_command,
    ledger_command,
    sample_command,
    launch_command,
):
    ketos.add_command(_command)
