"""The `ketos` command: global options, experiment file, and where errors become sentences."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from distrib import __version__
from distrib.cli.compile import compile_command
from distrib.cli.convert import convert_command
from distrib.cli.display import visible
from distrib.cli.inspect import inspect_command
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
_MACHINE_ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


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
    if error.errno in _MACHINE_ERRORS:
        return _failure(f"{place}{reason}; make room on this machine, or use another, and start again.", 1)
    return _failure(f"{place}{reason}; check its name and permissions.", 2)


class _Ketos(click.Group):
    """Turns errors into one sentence and an exit code; tracebacks only under ``-vv``."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(_INTERRUPTED)
        except PeerError as error:
            ctx.exit(error.exit_code)
        except KetosError as error:
            _print_traceback(ctx)
            raise _failure(str(error), error.exit_code) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            _print_traceback(ctx)
            raise _system_failure(error) from None
        except MemoryError as error:
            _print_traceback(ctx)
            detail = f" ({error})" if str(error) else ""
            raise _failure(f"Out of memory{detail}; lessen --batch-size, --pad or --workers.", 1) from None
        except Exception as error:  # the boundary: whatever is left is a bug and says how to see it
            _print_traceback(ctx)
            hint = "" if ctx.params.get("verbose", 0) > 1 else " (ketos -vv shows where)"
            raise _failure(f"Unexpected {type(error).__name__}: {error}{hint}", 1) from None


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
):
    ketos.add_command(_command)
