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

    \b
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
    from distrib.model.weights import save_weights
    from distrib.training.models import load_model

    (source,) = options.checkpoints
    if options.output.exists() and source.exists() and options.output.samefile(source):
        raise InputError(f"-o {options.output} is the file to convert; give another name.")
    save_weights(load_model(source), options.output, weights_format=options.weights_format)
    click.echo(f"{options.output}: written from {source}")
