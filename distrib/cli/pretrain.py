"""`ketos pretrain`."""

from __future__ import annotations

from distrib.cli.options import section_command
from distrib.config.sections import Globals, Pretrain
from distrib.errors import InputError


@section_command("pretrain")
def pretrain_command(_globals: Globals, _options: Pretrain) -> None:
    """Pretrain a model on line images without transcriptions."""
    raise InputError("`ketos pretrain` is not yet available; `ketos train` trains from scratch.")
