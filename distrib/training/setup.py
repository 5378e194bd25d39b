"""Everything of a run that is decided before its first step: lines, model, loaders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distrib.config.experiment import parse_experiment
from distrib.config.sections import Globals, Train
from distrib.config.values import make_section
from distrib.errors import InputError
from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.text import TextPipeline
from distrib.model.coreml import refuse_unfit
from distrib.model.weights import RecognitionModel
from distrib.runtime.checkpoints.contents import model_from_checkpoint, run_state
from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint
from distrib.runtime.processes import Processes
from distrib.stream.lines import LineCollection
from distrib.stream.loader import EvaluationLoader, TrainingLoader
from distrib.stream.widths import input_widths
from distrib.training.changed_options import refuse_changed_model
from distrib.training.loaders import Loaders, fill, lines_digest, plan_settings
from distrib.training.models import fine_tuned_model, network_input_of, new_model, read_codec
from distrib.training.preparation import LineSets, load_codec, split_lines, text_pipeline
from distrib.training.survey import Survey, label_steps, survey, too_narrow

DEFAULT_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What a run trains on, known before its first step.

    ``global_lines`` is 0 where steps are cut by pixels; ``fill`` is real over padded columns, in 0..1.
    """

    training_lines: int
    validation_lines: int
    origin: str
    training: Survey
    validation: Survey
    unknown: list[str]
    narrow: int
    spec: str
    parameters: int
    global_lines: int
    steps: int
    fill: float
    problems: list[str]


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that can begin: its options, model, lines and loaders, and the checkpoint it goes on from, with
    the options that was written under.

    ``options`` are those given with what they left open filled in; ``lines`` (N,) are trained on.
    """

    options: Train
    globals_: Globals
    seed: int
    processes: Processes
    model: RecognitionModel
    sets: LineSets
    lines: npt.NDArray[np.int64]
    training: TrainingLoader
    validation: EvaluationLoader
    validation_digest: str
    overview: Overview
    resume_from: Path | None
    options_then: Train | None


@dataclass(frozen=True, kw_only=True)
class _TrainingLines:
    """Lines (N,) that can be trained on, their columns (N,), and those too narrow for their text."""

    lines: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    narrow: npt.NDArray[np.int64]


def prepare(
    options: Train,
    globals_: Globals,
    training: LineCollection,
    validation: LineCollection | None,
    *,
    processes: Processes,
    resume_from: Path | None,
) -> PreparedRun:
    """Choose lines and make model and loaders; ``resume_from`` is the whole checkpoint to go on from.

    Raises InputError with a sentence where that cannot be.
    """
    seed = DEFAULT_SEED if globals_.seed is None else globals_.seed
    torch.set_num_threads(globals_.num_threads)
    torch.manual_seed(seed)
    pipeline = text_pipeline(options)
    # Without a seed the split is the same in every run of this data, with one it is that seed's.
    sets = split_lines(training, validation, options, 0 if globals_.seed is None else globals_.seed)
    surveyed = survey(sets.training, sets.training_lines, pipeline)
    surveyed_held = survey(sets.validation, sets.validation_lines, pipeline)
    checkpoint = None if resume_from is None else open_checkpoint(resume_from, verify=False)
    model = _model(options, sets, surveyed, checkpoint)
    saved = then = None
    if checkpoint is not None:
        saved, then = _stream_state(checkpoint), _options_then(checkpoint)
        refuse_changed_model(options, then)
    network_input = network_input_of(model, padding=options.padding)
    if saved is not None and 0 < options.epochs < saved["epoch"]:
        raise InputError(
            f"--epochs {options.epochs}: the run has done {saved['epoch']} epochs already; give a larger "
            "number."
        )
    chosen = _training_lines(sets.training, surveyed, pipeline, model, network_input)
    held = np.setdiff1d(sets.validation_lines, surveyed_held.empty, assume_unique=True)
    if not held.size:
        raise InputError("The validation lines hold no text at all; give others with -e.")
    settings = plan_settings(options, network_input, processes, saved)
    options = replace(options, global_batch_size=settings.global_lines or None)
    loaders = Loaders(
        options=options, globals_=globals_, processes=processes, model=model, network_input=network_input
    )
    training_loader = loaders.training(sets.training, chosen.lines, chosen.columns, settings, seed)
    if saved is not None:
        if not options.resume_anyway:
            training_loader.refuse_other(saved)
        # Lightning asks for the length of the epoch before it hands over this state.
        training_loader.load_state_dict(saved)
    held_columns = input_widths(sets.validation, network_input).columns[held]
    return PreparedRun(
        options=options,
        globals_=globals_,
        seed=seed,
        processes=processes,
        model=model,
        sets=sets,
        lines=chosen.lines,
        training=training_loader,
        validation=loaders.evaluation(sets.validation, held, held_columns),
        validation_digest=lines_digest(sets.validation.index().keys[held], held_columns),
        overview=Overview(
            training_lines=chosen.lines.size,
            validation_lines=held.size,
            origin=sets.origin,
            training=surveyed,
            validation=surveyed_held,
            unknown=sorted(model.codec.unencodable("".join(surveyed_held.alphabet))),
            narrow=chosen.narrow.size,
            spec=model.network.spec,
            parameters=sum(parameter.numel() for parameter in model.network.parameters()),
            global_lines=settings.global_lines,
            steps=len(training_loader),
            fill=fill(training_loader, chosen.columns, loaders.share, settings),
            problems=[*sets.training.problems],
        ),
        resume_from=resume_from,
        options_then=then,
    )


def refuse_unlike_processes(run: PreparedRun) -> None:
    """Raise InputError where a process has found other lines than rank zero, or stands elsewhere in them.

    All processes call it, once each has prepared its run.
    """
    plans = run.processes.gather((run.training.state_dict(), run.validation_digest))
    unlike = [rank for rank, plan in enumerate(plans) if plan != plans[0]]
    if unlike:
        run.processes.stop(
            InputError(
                f"Process {unlike[0]} reads other data, or another checkpoint, than process 0; see that the "
                "paths lead to the same files on every node."
            )
        )


def _stream_state(checkpoint: CheckpointReader) -> dict[str, Any]:
    """Where the stream stood. Raises InputError for a checkpoint from which no run can go on."""
    state = run_state(checkpoint)["stream"]
    if not isinstance(state, dict) or not {"epoch", "step", "number", "facts"} <= state.keys():
        raise InputError(
            f"{checkpoint.path}: the checkpoint is damaged, without the position of its stream; start from "
            "its weights with --load."
        )
    return dict(state)


def _options_then(checkpoint: CheckpointReader) -> Train:
    """The options that a checkpoint was written under."""
    stored = parse_experiment(run_state(checkpoint)["experiment"], checkpoint.path)
    return make_section(Train, "train", stored.sections.get("train", {}))


def _training_lines(
    collection: LineCollection,
    surveyed: Survey,
    pipeline: TextPipeline,
    model: RecognitionModel,
    network_input: NetworkInput,
) -> _TrainingLines:
    """The surveyed lines that have a text and are wide enough for it. Raises InputError where none is."""
    widths = input_widths(collection, network_input)
    steps = label_steps(surveyed, model.codec, collection, pipeline)
    with_text = surveyed.lengths > 0
    lines = surveyed.lines[with_text]
    narrow = too_narrow(
        collection,
        lines,
        widths.columns[lines],
        widths.exact[lines],
        steps[with_text],
        output_width=model.network.output_width,
        network_input=network_input,
    )
    lines = np.setdiff1d(lines, narrow, assume_unique=True)
    if not lines.size:
        raise InputError(
            f"All {narrow.size} training lines are too narrow for their text under this --spec; lessen its "
            "subsampling (strides and pooling along the width)."
        )
    return _TrainingLines(lines=lines, columns=widths.columns[lines], narrow=narrow)


def _model(
    options: Train, sets: LineSets, training: Survey, checkpoint: CheckpointReader | None
) -> RecognitionModel:
    if checkpoint is not None:
        model = model_from_checkpoint(checkpoint)
        if options.weights_format == "coreml":
            refuse_unfit(model.network, options.checkpoint_path)
        return model
    if options.load is not None:
        return fine_tuned_model(options, options.load, sets.training, training.alphabet)
    return new_model(options, sets.training, load_codec(read_codec(options.codec), training.alphabet))
