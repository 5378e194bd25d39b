"""Everything of a run that is decided before its first step: lines, model, loaders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrib.config.sections import Globals, Train
from distrib.errors import InputError
from distrib.model.ctc import required_steps
from distrib.model.weights import RecognitionModel
from distrib.runtime.checkpoints import (
    STATE_KEY,
    checkpoint_to_resume,
    load_checkpoint,
    model_from_checkpoint,
)
from distrib.runtime.devices import torch_device
from distrib.stream.batches import BatchReader
from distrib.stream.lines import LineCollection, input_widths
from distrib.stream.loader import EvaluationLoader, TrainingLoader
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

DEFAULT_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What a run trains on, known before its first step."""

    training_lines: int
    validation_lines: int
    origin: str
    training: Survey
    validation: Survey
    unknown: list[str]
    narrow: int
    spec: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that can begin: its options, model, lines and loaders, and the checkpoint it goes on from."""

    options: Train
    globals_: Globals
    model: RecognitionModel
    sets: LineSets
    training: TrainingLoader
    validation: EvaluationLoader
    overview: Overview
    resume_from: Path | None


def prepare(
    options: Train, globals_: Globals, training: LineCollection, validation: LineCollection | None
) -> PreparedRun:
    """Choose lines and make model and loaders. Raises InputError with a sentence where that cannot be."""
    seed = DEFAULT_SEED if globals_.seed is None else globals_.seed
    torch.set_num_threads(globals_.num_threads)
    torch.manual_seed(seed)
    pipeline = text_pipeline(options)
    # Without a seed the split is the same in every run of this data, with one it is that seed's.
    sets = split_lines(training, validation, options, 0 if globals_.seed is None else globals_.seed)
    training_survey = survey(sets.training, sets.training_lines, pipeline)
    validation_survey = survey(sets.validation, sets.validation_lines, pipeline)
    resume_from = None if options.resume is None else checkpoint_to_resume(options.resume)
    checkpoint = None if resume_from is None else load_checkpoint(resume_from)
    model = _model(options, sets, training_survey, checkpoint)
    network_input = network_input_of(model, padding=options.padding)
    widths = input_widths(sets.training, network_input)
    lines = np.setdiff1d(sets.training_lines, training_survey.empty)
    narrow = too_narrow(sets.training, lines, widths[lines], pipeline, model, network_input)
    lines, held = np.setdiff1d(lines, narrow), np.setdiff1d(sets.validation_lines, validation_survey.empty)
    if not lines.size:
        raise InputError(
            f"All {narrow.size} training lines are too narrow for their text under this --spec; lessen its "
            "subsampling (strides and pooling along the width)."
        )
    if not held.size:
        raise InputError("The validation lines hold no text at all; give others with -e.")
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
            steps_needed=required_steps,
        )

    training_loader = TrainingLoader(
        reader(sets.training), lines=lines, widths=widths[lines], seed=seed, **common
    )
    if checkpoint is not None:
        training_loader.refuse_other(checkpoint[STATE_KEY]["stream"])
    held_widths = input_widths(sets.validation, network_input)[held]
    return PreparedRun(
        options=options,
        globals_=globals_,
        model=model,
        sets=sets,
        training=training_loader,
        validation=EvaluationLoader(reader(sets.validation), lines=held, widths=held_widths, **common),
        overview=Overview(
            training_lines=lines.size,
            validation_lines=held.size,
            origin=sets.origin,
            training=training_survey,
            validation=validation_survey,
            unknown=sorted(model.codec.unencodable("".join(validation_survey.alphabet))),
            narrow=narrow.size,
            spec=model.network.spec,
            parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        ),
        resume_from=resume_from,
    )


def _model(
    options: Train, sets: LineSets, training: Survey, checkpoint: dict[str, Any] | None
) -> RecognitionModel:
    if checkpoint is not None:
        return model_from_checkpoint(checkpoint)
    if options.load is not None:
        return fine_tuned_model(options, options.load, sets.training, training.alphabet)
    return new_model(options, sets.training, load_codec(read_codec(options.codec), training.alphabet))
