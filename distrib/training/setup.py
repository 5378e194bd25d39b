"""Everything of a run that is decided before its first step: lines, model, loaders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distrib.config.experiment import parse_experiment, refuse_other_command
from distrib.config.learning import Learning, Pretrain, Train
from distrib.config.sections import Globals
from distrib.config.values import make_section
from distrib.errors import InputError
from distrib.model.weights import RecognitionModel
from distrib.runtime.checkpoints.contents import run_state
from distrib.runtime.checkpoints.reader import CheckpointReader, open_checkpoint
from distrib.runtime.processes import Processes
from distrib.stream.lines import LineCollection
from distrib.stream.loader import EvaluationLoader, TrainingLoader
from distrib.stream.widths import input_widths
from distrib.training.changed_options import refuse_changed_model
from distrib.training.choosing import Chosen, choose_recognition
from distrib.training.loaders import Loaders, fill, lines_digest, plan_settings
from distrib.training.preparation import LineSets, split_lines

DEFAULT_SEED = 42


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What a run trains on, known before its first step.

    ``global_lines`` is 0 where steps are cut by pixels; ``fill`` is real over padded columns, in 0..1.
    """

    training_lines: int
    validation_lines: int
    origin: str
    notes: tuple[str, ...]
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

    ``options`` are those given with what they left open filled in; ``lines`` (N,) are trained on, those
    ``held`` (M,) back are validated on.
    """

    options: Learning
    globals_: Globals
    seed: int
    processes: Processes
    model: RecognitionModel
    sets: LineSets
    lines: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]
    training: TrainingLoader
    validation: EvaluationLoader
    validation_digest: str
    overview: Overview
    resume_from: Path | None
    options_then: Learning | None


def prepare(
    options: Learning,
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
    # Without a seed the split is the same in every run of this data, with one it is that seed's.
    sets = split_lines(training, validation, options, 0 if globals_.seed is None else globals_.seed)
    checkpoint = None if resume_from is None else open_checkpoint(resume_from, verify=False)
    saved = then = None
    if checkpoint is not None:
        saved, then = _stream_state(checkpoint), _options_then(checkpoint, options)
        refuse_changed_model(options, then)
        if 0 < options.epochs < saved["epoch"]:
            raise InputError(
                f"--epochs {options.epochs}: the run has done {saved['epoch']} epochs already; give a larger "
                "number."
            )
    chosen = _choose(options, sets, checkpoint)
    model, network_input, held = chosen.model, chosen.network_input, chosen.held
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
        held=held,
        training=training_loader,
        validation=loaders.evaluation(sets.validation, held, held_columns),
        validation_digest=lines_digest(sets.validation.index().keys[held], held_columns),
        overview=Overview(
            training_lines=chosen.lines.size,
            validation_lines=held.size,
            origin=sets.origin,
            notes=chosen.notes,
            spec=model.network.spec,
            parameters=sum(parameter.numel() for parameter in model.network.parameters()),
            global_lines=settings.global_lines,
            steps=len(training_loader),
            fill=fill(training_loader, chosen.columns, loaders.share, settings),
            problems=[*sets.training.problems, *chosen.warnings],
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


def _choose(options: Learning, sets: LineSets, checkpoint: CheckpointReader | None) -> Chosen:
    if isinstance(options, Pretrain):
        from distrib.training.pretraining.choosing import choose_pretraining

        return choose_pretraining(options, sets, checkpoint)
    assert isinstance(options, Train)
    return choose_recognition(options, sets, checkpoint)


def _options_then(checkpoint: CheckpointReader, options: Learning) -> Learning:
    """The options that a checkpoint was written under. Raises InputError for one of another command."""
    stored = parse_experiment(run_state(checkpoint)["experiment"], checkpoint.path)
    refuse_other_command(stored, options.command, checkpoint.path)
    return make_section(type(options), options.command, stored.sections[options.command])
