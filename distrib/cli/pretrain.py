"""`ketos pretrain`."""

from __future__ import annotations

from distrib.cli.options import require_sources, section_command
from distrib.cli.running import run_learning
from distrib.config.learning import Pretrain
from distrib.config.sections import Globals


@section_command("pretrain")
def pretrain_command(globals_: Globals, options: Pretrain) -> None:
    """Pretrain a model on line images without transcriptions.

    GROUND_TRUTH is what -f says: XML files, line images, or compiled data sets (-f binary). Texts are not
    used; lines and images need none.
    """
    require_sources(
        options.ground_truth,
        options.training_data,
        remedy="No training data given: name files, or a file that lists them with -t.",
    )
    run_learning(globals_, options)
