"""Which lines are pretrained and validated on, and with which network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from distrib.config.learning import Pretrain
from distrib.errors import InputError
from distrib.ground_truth.network_input import NetworkInput
from distrib.model.coreml import refuse_unfit
from distrib.model.pretrained import NO_ALPHABET, with_fresh_output
from distrib.model.taps import FeatureTap
from distrib.model.weights import RecognitionModel
from distrib.runtime.checkpoints.contents import model_from_checkpoint
from distrib.runtime.checkpoints.reader import CheckpointReader
from distrib.stream.lines import LineCollection
from distrib.stream.widths import input_widths
from distrib.training.choosing import Chosen, refuse_unlike_heights
from distrib.training.fine_tuning import begun_anew, mismatches, refuse_other_spec
from distrib.training.models import load_model, network_input_of, new_model
from distrib.training.preparation import LineSets
from distrib.training.pretraining.heads import checked_tap
from distrib.training.survey import too_narrow
from distrib.wording import plural

Lines = npt.NDArray[np.int64]


def choose_pretraining(options: Pretrain, sets: LineSets, checkpoint: CheckpointReader | None) -> Chosen:
    """All lines, whatever their texts, and the network; that of ``checkpoint`` where one is given.

    Raises InputError where a line is narrower than a mask, or the network cannot be pretrained.
    """
    model, warnings = _model(options, sets.training, checkpoint)
    tap = checked_tap(model.network)
    if options.augment:
        refuse_unlike_heights(model.network)
    network_input = network_input_of(model, padding=options.padding)
    for name, collection, lines in (
        ("training", sets.training, sets.training_lines),
        ("validation", sets.validation, sets.validation_lines),
    ):
        _refuse_wide_masks(options, tap, network_input, collection, lines, name=name)
    lines = sets.training_lines
    return Chosen(
        model=model,
        network_input=network_input,
        lines=lines,
        columns=input_widths(sets.training, network_input).columns[lines],
        held=sets.validation_lines,
        notes=(_masks_note(options, tap),),
        warnings=tuple(warnings),
    )


def _model(
    options: Pretrain, training: LineCollection, checkpoint: CheckpointReader | None
) -> tuple[RecognitionModel, list[str]]:
    """The network that is trained, with an output layer for no alphabet, and what may not be meant so."""
    if checkpoint is not None:
        model = model_from_checkpoint(checkpoint)
        if options.weights_format == "coreml":
            refuse_unfit(model.network, options.checkpoint_path)
        return model, []
    if options.load is None:
        return new_model(options, training, NO_ALPHABET), []
    return _loaded(options, options.load, training)


def _loaded(options: Pretrain, path: Path, training: LineCollection) -> tuple[RecognitionModel, list[str]]:
    """The network of ``--load``; from here on it is one of the training data's line type, without a past."""
    loaded = load_model(path)
    try:
        refuse_other_spec(options.spec, loaded.network)
        model = loaded if loaded.codec == NO_ALPHABET else with_fresh_output(loaded, NO_ALPHABET)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    model = begun_anew(model, options, training)
    return model, mismatches(loaded, training, data="the training data", path=path)


def _refuse_wide_masks(
    options: Pretrain,
    tap: FeatureTap,
    network_input: NetworkInput,
    collection: LineCollection,
    lines: Lines,
    *,
    name: str,
) -> None:
    """Raise InputError where a mask is wider than one of ``lines``."""
    widths = input_widths(collection, network_input)
    narrow = too_narrow(
        collection,
        lines,
        widths.columns[lines],
        widths.exact[lines],
        np.full(lines.size, options.mask_width, dtype=np.int32),
        output_width=tap.width,
        network_input=network_input,
    )
    if not narrow.size:
        return
    columns = tap.width(widths.columns[narrow].astype(np.int64))
    shortest = int(columns.argmin())
    source, line_id = collection.place(int(narrow[shortest]))
    place = " of ".join(filter(None, dict.fromkeys((line_id, source)))) or "of unknown source"
    raise InputError(
        f"--mask-width {options.mask_width}: {plural(narrow.size, f'{name} line')} {_are(narrow.size)} "
        f"narrower, the shortest with {plural(int(columns[shortest]), 'column')} of the feature map (line "
        f"{place}); give a smaller --mask-width, or leave such lines out."
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _masks_note(options: Pretrain, tap: FeatureTap) -> str:
    hidden = 1 - (1 - options.mask_prob) ** options.mask_width
    return (
        f"predicting hidden columns of a feature map of {tap.channels * tap.height} channels: masks of "
        f"{plural(options.mask_width, 'column')} hide {hidden:.0%} of a line; texts are not used"
    )
