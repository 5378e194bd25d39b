"""Options that contradict each other or that this machine cannot honour, found before any work."""

from __future__ import annotations

import importlib.util

from distrib.config.learning import Learning, Pretrain, Train
from distrib.config.sections import Globals
from distrib.config.sizes import parse_size
from distrib.errors import InputError
from distrib.runtime.devices import check_precision
from distrib.runtime.strategies.choose import check_strategy
from distrib.training.optimization import check_optimizer
from distrib.training.provenance import check_credits
from distrib.training.schedules import check_rates


def check_options(options: Learning, globals_: Globals) -> None:
    """Raise InputError, naming the option and the way out, for the first thing that cannot be."""
    check_precision(globals_.precision, globals_.device)
    check_strategy(
        options.strategy,
        offload=options.offload,
        precision=globals_.precision,
        device=globals_.device,
        optimizer=options.optimizer,
    )
    check_credits(author=options.author, license=options.license)
    if options.epochs == 0:
        raise InputError("--epochs 0: give a number of epochs from 1, or -1 for no limit.")
    if options.quit == "fixed" and options.epochs < 1:
        raise InputError("--quit fixed needs --epochs: the number of epochs to train for.")
    if options.resume_anyway and not options.resume:
        raise InputError("--resume-anyway goes with --resume: name the run or checkpoint to go on from.")
    if not options.batch_size and not options.batch_pixels:
        raise InputError("--batch-size 0 means as many lines as fit into --batch-pixels; give that as well.")
    parse_size(options.cache_size, option="--cache-size")
    if options.freq > 1 and not options.freq.is_integer():
        raise InputError(f"--freq {options.freq:g}: above 1 it must be a whole number of epochs.")
    if isinstance(options, Train) and options.codec is not None and (options.load or options.resume):
        raise InputError("--codec cannot be given with --load or --resume: the model has its codec.")
    if options.load and options.resume:
        raise InputError(
            "--load and --resume exclude each other: resume continues a run, load starts a new one."
        )
    if options.weights_format == "coreml" and importlib.util.find_spec("coremltools") is None:
        raise InputError(
            "--weights-format coreml needs the package coremltools: pip install 'ketos-distrib[coreml]'."
        )
    check_rates(options)
    if isinstance(options, Pretrain) and not 0 < options.mask_prob < 1:
        raise InputError(
            f"--mask-probability {options.mask_prob:g}: give a number between 0, which would hide nothing, "
            "and 1, which would leave nothing to see."
        )
    check_optimizer(options)
