"""One training run on one process: what is trained on, the fit, the best model exported."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from distrib.config.sections import Globals, Train, WeightsFormat
from distrib.errors import InputError, RunError
from distrib.ground_truth.text import TextPipeline
from distrib.model.ctc import required_steps
from distrib.model.weights import RecognitionModel, save_weights
from distrib.runtime.checkpoints import (
    AtomicCheckpointIO,
    checkpoint_to_resume,
    load_checkpoint,
    model_from_checkpoint,
    saved_checkpoints,
)
from distrib.runtime.devices import check_precision, lightning_device, torch_device
from distrib.stream.batches import BatchReader
from distrib.stream.lines import LineCollection, input_widths
from distrib.stream.loader import EvaluationLoader, TrainingLoader
from distrib.training.callbacks import Bookkeeping
from distrib.training.models import fine_tuned_model, network_input_of, new_model, read_codec
from distrib.training.preparation import (
    LineSets,
    Survey,
    load_codec,
    split_lines,
    survey,
    text_pipeline,
    too_narrow,
)
from distrib.training.progress import TrainingProgress
from distrib.training.recognition import RecognitionModule
from distrib.training.stopping import EarlyStopping

DEFAULT_SEED = 42
_EXTENSIONS = {"safetensors": "safetensors", "coreml": "mlmodel"}


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What a run trains on, known before its first step."""

    training_lines: int
    validation_lines: int
    origin: str
    training: Survey
    validation: Survey
    empty: int
    narrow: int
    spec: str
    parameters: int
    codec_size: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: the exported file, its validation score in 0..1, the checkpoint it came from."""

    weights: Path
    score: float
    checkpoint: Path
    bad_lines: Sequence[tuple[int, str]]


def train(
    options: Train,
    globals_: Globals,
    training: LineCollection,
    validation: LineCollection | None,
    *,
    on_overview: Callable[[Overview], None],
) -> Outcome:
    """Train, validate, keep the best, export it. Raises InputError or RunError with a sentence."""
    check_options(options, globals_)
    seed = DEFAULT_SEED if globals_.seed is None else globals_.seed
    resumed = _resumed(options)
    _set_up_process(globals_, seed)
    pipeline = text_pipeline(options)
    # Without a seed the split is the same in every run of this data, with one it is that seed's.
    sets = split_lines(training, validation, options, 0 if globals_.seed is None else globals_.seed)
    surveys = (
        survey(sets.training, sets.training_lines, pipeline),
        survey(sets.validation, sets.validation_lines, pipeline),
    )
    if resumed:
        model = model_from_checkpoint(resumed[1])
    elif options.load is not None:
        model = fine_tuned_model(options, options.load, surveys[0].alphabet)
    else:
        model = new_model(options, sets.training, load_codec(read_codec(options.codec), surveys[0].alphabet))
    loaders, overview = _loaders(options, globals_, sets, surveys, pipeline, model, seed)
    on_overview(overview)
    return _fit(options, globals_, model, loaders, resumed[0] if resumed else None)


def check_options(options: Train, globals_: Globals) -> None:
    check_precision(globals_.precision, globals_.device)
    if options.quit == "fixed" and options.epochs < 1:
        raise InputError("--quit fixed needs --epochs: the number of epochs to train for.")
    if options.freq > 1 and not options.freq.is_integer():
        raise InputError(f"--freq {options.freq:g}: above 1 it must be a whole number of epochs.")
    if options.codec is not None and (options.load or options.resume):
        raise InputError("--codec cannot be given with --load or --resume: the model has its codec.")
    if options.load and options.resume:
        raise InputError(
            "--load and --resume exclude each other: resume continues a run, load starts a new one."
        )
    later = {
        "--quit aneal": options.quit == "aneal",
        "--warmup": options.warmup > 0,
        f"--schedule {options.schedule}": options.schedule != "constant",
        "--freeze-backbone": options.freeze_backbone > 0,
        "--augment": options.augment,
        "--logger wandb": options.pl_logger == "wandb",
    }
    for option, given in later.items():
        if given:
            raise InputError(f"{option} is not yet available.")


def _resumed(options: Train) -> tuple[Path, dict[str, Any]] | None:
    if options.resume is None:
        return None
    path = checkpoint_to_resume(options.resume)
    return path, load_checkpoint(path)


def _set_up_process(globals_: Globals, seed: int) -> None:
    # Lightning's notices speak to programmers; everything a user needs is said by us.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING if globals_.verbose else logging.ERROR)
    if not globals_.verbose:
        warnings.filterwarnings("ignore", module=r"lightning\..*")
    torch.set_num_threads(globals_.num_threads)
    torch.manual_seed(seed)


def _loaders(
    options: Train,
    globals_: Globals,
    sets: LineSets,
    surveys: tuple[Survey, Survey],
    pipeline: TextPipeline,
    model: RecognitionModel,
    seed: int,
) -> tuple[tuple[TrainingLoader, EvaluationLoader], Overview]:
    network_input = network_input_of(model, padding=options.padding)
    lines = np.setdiff1d(sets.training_lines, surveys[0].empty)
    widths = input_widths(sets.training, network_input)[lines]
    narrow = too_narrow(sets.training, lines, widths, pipeline, model, network_input)
    fits = ~np.isin(lines, narrow)
    if not fits.any():
        raise InputError(
            f"All {lines.size} training lines are too narrow for their text under this --spec; lessen its "
            "subsampling (strides and pooling along the width)."
        )
    common: dict[str, Any] = {
        "batch_size": options.batch_size,
        "workers": globals_.num_workers,
        "pin_memory": torch_device(globals_.device).startswith("cuda"),
    }

    def reader(collection: LineCollection) -> BatchReader:
        return BatchReader(
            collection=collection,
            network_input=network_input,
            text_pipeline=pipeline,
            encode=model.codec.encode,
            required_steps=required_steps,
        )

    held = np.setdiff1d(sets.validation_lines, surveys[1].empty)
    if not held.size:
        raise InputError("The validation lines hold no text at all; give others with -e.")
    training = TrainingLoader(
        reader(sets.training), lines=lines[fits], widths=widths[fits], seed=seed, **common
    )
    held_widths = input_widths(sets.validation, network_input)[held]
    validation = EvaluationLoader(reader(sets.validation), lines=held, widths=held_widths, **common)
    overview = Overview(
        training_lines=int(fits.sum()),
        validation_lines=held.size,
        origin=sets.origin,
        training=surveys[0],
        validation=surveys[1],
        empty=surveys[0].empty.size,
        narrow=narrow.size,
        spec=model.network.spec,
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        codec_size=len(model.codec.c2l),
    )
    return (training, validation), overview


def _fit(
    options: Train,
    globals_: Globals,
    model: RecognitionModel,
    loaders: tuple[TrainingLoader, EvaluationLoader],
    resume_from: Path | None,
) -> Outcome:
    directory = options.checkpoint_path
    early = options.quit == "early"
    stopping = None
    if early:
        stopping = EarlyStopping(lag=options.lag, min_delta=options.min_delta, min_epochs=options.min_epochs)
    bookkeeping = Bookkeeping(directory, stopping=stopping)
    total = options.epochs if options.epochs > 0 else None
    module = RecognitionModule(model, options)
    trainer = pl.Trainer(
        **lightning_device(globals_.device),
        precision=globals_.precision,
        deterministic=globals_.deterministic,
        max_epochs=total or -1,
        min_epochs=options.min_epochs or None,
        gradient_clip_val=options.gradient_clip_val or None,
        accumulate_grad_batches=options.accumulate_grad_batches,
        callbacks=[bookkeeping, TrainingProgress(total_epochs=total)],
        plugins=[AtomicCheckpointIO()],
        logger=_logger(options),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **_validation_interval(options.freq, len(loaders[0])),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore") if not globals_.verbose else None
        trainer.fit(module, *loaders, ckpt_path=str(resume_from) if resume_from else None, weights_only=True)
    if trainer.interrupted:
        raise RunError(f"Interrupted; go on with `ketos train --resume {directory}` and the same options.")
    return export_best(directory, options.weights_format, module.bad_lines)


def export_best(
    directory: Path, weights_format: WeightsFormat, bad_lines: Sequence[tuple[int, str]]
) -> Outcome:
    """Write the weights of the best checkpoint of ``directory`` as ``best_<score>.<format>``."""
    saved = saved_checkpoints(directory)
    if not saved:
        raise RunError("Training ended before its first validation; there is no model to export.")
    best = saved[-1]
    target = directory / f"best_{best.score:.4f}.{_EXTENSIONS[weights_format]}"
    save_weights(model_from_checkpoint(load_checkpoint(best.path)), target, weights_format=weights_format)
    return Outcome(weights=target, score=best.score, checkpoint=best.path, bad_lines=tuple(bad_lines))


def _validation_interval(freq: float, steps: int) -> dict[str, Any]:
    if freq >= 1:
        return {"check_val_every_n_epoch": int(freq)}
    return {"val_check_interval": max(1, round(freq * steps))}


def _logger(options: Train) -> Any:
    if options.pl_logger is None:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=options.log_dir or options.checkpoint_path / "tensorboard", name=None)
