"""Which lines recognition is trained and validated on, and with which model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distrib.config.learning import Train
from distrib.errors import InputError
from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.text import TextPipeline
from distrib.model.coreml import refuse_unfit
from distrib.model.taps import FeatureTap
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel
from distrib.runtime.checkpoints.contents import model_from_checkpoint
from distrib.runtime.checkpoints.reader import CheckpointReader
from distrib.stream.lines import LineCollection
from distrib.stream.widths import input_widths
from distrib.training.fine_tuning import FineTuning, fine_tuning
from distrib.training.models import codec_notes, network_input_of, new_model, read_codec
from distrib.training.preparation import (
    LineSets,
    alphabet_difference,
    describe_alphabet,
    load_codec,
    printable,
    text_pipeline,
)
from distrib.training.shortcut import refuse_varying_height
from distrib.training.survey import Survey, label_steps, survey, too_narrow
from distrib.wording import plural


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A model, the lines (N,) that it is trained on with their columns (N,), those (M,) it is validated on.

    ``notes`` say what there is to know of them before the first step, a line each, ``warnings`` what may not
    be meant so.
    """

    model: RecognitionModel
    network_input: NetworkInput
    lines: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    held: npt.NDArray[np.int64]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def choose_recognition(options: Train, sets: LineSets, checkpoint: CheckpointReader | None) -> Chosen:
    """Lines with a text that fits into their width, and the model; that of ``checkpoint`` where one is given.

    Raises InputError where nothing is left of a side, or the model cannot be.
    """
    pipeline = text_pipeline(options)
    surveyed = survey(sets.training, sets.training_lines, pipeline)
    surveyed_held = survey(sets.validation, sets.validation_lines, pipeline)
    start = _start(options, sets, surveyed, checkpoint)
    model = start.model
    refuse_without_parts(options, model.network)
    network_input = network_input_of(model, padding=options.padding)
    widths = input_widths(sets.training, network_input)
    lines = surveyed.lines[surveyed.lengths > 0]
    narrow = _narrow(sets.training, surveyed, pipeline, model, network_input)
    lines = np.setdiff1d(lines, narrow, assume_unique=True)
    if not lines.size:
        raise InputError(
            f"All {narrow.size} training lines are too narrow for their text under this --spec; lessen its "
            "subsampling (strides and pooling along the width)."
        )
    held = np.setdiff1d(sets.validation_lines, surveyed_held.empty, assume_unique=True)
    if not held.size:
        raise InputError("The validation lines hold no text at all; give others with -e.")
    unknown = sorted(model.codec.unencodable("".join(surveyed_held.alphabet)))
    return Chosen(
        model=model,
        network_input=network_input,
        lines=lines,
        columns=widths.columns[lines],
        held=held,
        notes=(*_notes(surveyed, surveyed_held, unknown=unknown, narrow=narrow.size), *start.notes),
        warnings=start.warnings,
    )


def refuse_without_parts(options: Train, network: VGSLNetwork) -> None:
    """Raise InputError for options that want what the network has not."""
    if options.augment:
        refuse_unlike_heights(network)
    wanting = [("--shortcut", options.shortcut), ("--span-masks", options.span_masks)]
    names = [name for name, value in wanting if value]
    if not names:
        return
    try:
        tap = FeatureTap(network)
    except InputError as error:
        way_out = f"or leave {'the option' if len(names) == 1 else 'the options'} out."
        raise InputError(f"{' and '.join(names)}: {str(error).removesuffix('.')}, {way_out}") from None
    if options.shortcut:
        refuse_varying_height(tap)


def refuse_unlike_heights(network: VGSLNetwork) -> None:
    """Raise InputError for a network that ``--augment`` does not go with."""
    # Batches are as high as their highest line, and by that height amplitudes are measured.
    if not network.input_shape[2]:
        raise InputError(
            f"--augment needs lines of one height, which VGSL spec `{network.spec}` leaves open, so that it "
            "would distort a line otherwise in another batch; give --spec an input of fixed height, or leave "
            "the option out."
        )


def _narrow(
    collection: LineCollection,
    surveyed: Survey,
    pipeline: TextPipeline,
    model: RecognitionModel,
    network_input: NetworkInput,
) -> npt.NDArray[np.int64]:
    """The surveyed lines that have a text and are too narrow for it."""
    widths = input_widths(collection, network_input)
    steps = label_steps(surveyed, model.codec, collection, pipeline)
    with_text = surveyed.lengths > 0
    lines = surveyed.lines[with_text]
    return too_narrow(
        collection,
        lines,
        widths.columns[lines],
        widths.exact[lines],
        steps[with_text],
        output_width=model.network.output_width,
        network_input=network_input,
    )


def _start(
    options: Train, sets: LineSets, training: Survey, checkpoint: CheckpointReader | None
) -> FineTuning:
    """The model to train on, and what to say of it before."""
    if checkpoint is not None:
        model = model_from_checkpoint(checkpoint)
        if options.weights_format == "coreml":
            refuse_unfit(model.network, options.checkpoint_path)
        return FineTuning(model=model)
    if options.load is not None:
        return fine_tuning(options, options.load, sets.training, training.alphabet)
    codec = load_codec(read_codec(options.codec), training.alphabet)
    return FineTuning(model=new_model(options, sets.training, codec), notes=codec_notes(options, codec))


def _notes(training: Survey, validation: Survey, *, unknown: list[str], narrow: int) -> list[str]:
    """The alphabet, what validation and training do not share, and what was left out."""
    characters = training.alphabet
    notes = [
        f"{plural(characters.total(), 'character')} to learn from; alphabet of {len(characters)}: "
        + describe_alphabet(characters)
    ]
    ours, theirs = alphabet_difference(characters, validation.alphabet)
    if unknown:
        notes.append(f"only in validation, cannot be learned: {' '.join(map(printable, unknown))}")
    theirs = [character for character in theirs if character not in unknown]
    if theirs:
        notes.append(f"only in validation, known to the model: {' '.join(map(printable, theirs))}")
    if ours:
        notes.append(f"only in training, not measured: {' '.join(map(printable, ours))}")
    if training.empty.size:
        notes.append(f"left out: {plural(training.empty.size, 'line')} without text")
    if narrow:
        notes.append(f"left out: {plural(narrow, 'line')} too narrow for their text (CTC)")
    return notes
