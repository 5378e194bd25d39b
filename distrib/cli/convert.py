"""`ketos convert`."""

from __future__ import annotations

import click

from distrib.cli.options import section_command
from distrib.config.sections import Convert, Globals
from distrib.errors import InputError
from distrib.files import check_output


@section_command("convert")
def convert_command(_globals: Globals, options: Convert) -> None:
    """Convert a checkpoint or weights file into a weights file.

    What is written is read back and compared before it takes its name. Of the directory of a run the best
    checkpoint is converted.

    \b
    ketos convert -o model.safetensors --license CC-BY-4.0 run
    ketos convert -o model.safetensors checkpoint_10-0.9412.ckpt
    ketos convert -o model.mlmodel --weights-format coreml model.safetensors
    """
    if not options.checkpoints:
        raise InputError("No checkpoint or weights file given: name the one to convert.")
    if len(options.checkpoints) > 1:
        raise InputError(
            f"{len(options.checkpoints)} files given: combining several models into one weights file is not "
            "yet available; convert one at a time."
        )
    check_output(options.output)
    from distrib.runtime.checkpoints.names import is_checkpoint
    from distrib.training.export import export

    (source,) = options.checkpoints
    if options.output.exists():
        if source.exists() and options.output.samefile(source):
            raise InputError(f"-o {options.output} is the file to convert; give another name.")
        if is_checkpoint(options.output):
            raise InputError(f"-o {options.output} is a checkpoint, which would be lost; give another name.")
    written = export(
        source,
        options.output,
        weights_format=options.weights_format,
        author=options.author,
        license=options.license,
    )
    click.echo(str(written))
