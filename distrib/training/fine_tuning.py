"""Starting from a trained model: its output layer fitted to the data, and how it and the data differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from distrib.config.choices import DEFAULT_SPEC
from distrib.config.learning import Learning, Train
from distrib.errors import InputError
from distrib.model.coreml import refuse_unfit
from distrib.model.grammar import parse_spec
from distrib.model.pretrained import is_pretrained, with_fresh_output
from distrib.model.resize import ResizeMode, codec_difference, ctc_layer, resize_output
from distrib.model.spec import Group, Output, Spec
from distrib.model.vgsl import VGSLNetwork
from distrib.model.weights import RecognitionModel
from distrib.stream.lines import LineCollection
from distrib.training.models import line_type_of, load_model
from distrib.training.preparation import load_codec, printable
from distrib.training.provenance import KEY
from distrib.training.reading import flags, recorded_options

_RESIZE_MODES: dict[str, ResizeMode] = {
    "union": "union",
    "add": "union",
    "new": "new",
    "both": "new",
    "fail": "fail",
}
"""``add`` and ``both`` are what kraken called ``union`` and ``new`` before."""

_FRESH = "the loaded network is pretrained: its output layer begins anew, with the alphabet of the data"

_COLOURS = {"1": "black and white", "L": "grey", "RGB": "colour"}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """The model to train on, and sentences to show before: ``notes`` on how its alphabet and that of the data
    differ, ``warnings`` on what else about the data is not as the model knows it."""

    model: RecognitionModel
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def fine_tuning(
    options: Train, path: Path, training: LineCollection, alphabet: Mapping[str, int]
) -> FineTuning:
    """The model of ``--load`` with its output layer fitted to ``alphabet`` as ``--resize`` says.

    ``alphabet`` says how often the training lines hold each character. From here on it is a model of the
    training data's line type, without a past. A pretrained network, which knows no characters, gets a fresh
    output layer for them, whatever ``--resize`` says.

    Raises InputError where the file is no model with a CTC output layer, where ``--spec`` asks for another
    network, and where ``--resize fail`` meets characters that the model lacks.
    """
    loaded = load_model(path)
    fresh = is_pretrained(loaded)
    try:
        if not fresh:
            ctc_layer(loaded.network)
        refuse_other_spec(options.spec, loaded.network)
        if fresh:
            resized = with_fresh_output(loaded, load_codec(None, Counter(alphabet)))
        else:
            resized = resize_output(loaded, alphabet, _RESIZE_MODES[options.resize])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    model = begun_anew(resized, options, training)
    warnings = [*_renamed(options), *mismatches(loaded, training, data="the training data", path=path)]
    return FineTuning(
        model=model,
        notes=(_FRESH,) if fresh else tuple(_alphabet_notes(options, loaded, alphabet)),
        warnings=(*warnings, *_other_reading(options, loaded, path)),
    )


def begun_anew(model: RecognitionModel, options: Learning, training: LineCollection) -> RecognitionModel:
    """A loaded model as a run starts with it: of the training data's line type, and without a past.

    Raises InputError where ``--weights-format`` cannot hold it.
    """
    if options.weights_format == "coreml":
        refuse_unfit(model.network, options.checkpoint_path)
    return replace(
        model,
        seg_type=line_type_of(training),
        legacy_polygons=training.legacy_polygons,
        metrics=[],
        accuracy=[],
        file_metadata={name: text for name, text in model.file_metadata.items() if name != KEY},
    )


def mismatches(model: RecognitionModel, lines: LineCollection, *, data: str, path: Path) -> list[str]:
    """A sentence for each way in which ``lines`` are unlike those that the model was trained on.

    ``data`` stands for the lines in them (``the training data``), ``path`` for the model.
    """
    found = []
    if lines.line_type != model.seg_type:
        found.append(
            f"{path} was trained on {model.seg_type} lines, {data} hold {lines.line_type} lines, which are "
            "cut otherwise."
        )
    elif model.seg_type == "baselines" and lines.legacy_polygons != model.legacy_polygons:
        old, new = "the extractor of kraken < 5", "the present extractor"
        taught, given = (old, new) if model.legacy_polygons else (new, old)
        found.append(f"{path} was trained on lines cut with {taught}, {data} were cut with {given}.")
    found += _image_mismatches(model, lines, data, path)
    heights = {dataset.normalized_height for dataset in lines.datasets} - {0, model.network.input_shape[2]}
    if heights and model.network.input_shape[2]:
        stored = " and ".join(map(str, sorted(heights)))
        found.append(
            f"{data[0].upper()}{data[1:]} are stored {stored} pixels high, {path} takes lines of "
            f"{model.network.input_shape[2]}: they are scaled a second time; compile them with --height "
            f"{model.network.input_shape[2]} for sharper ones."
        )
    return found


def _image_mismatches(model: RecognitionModel, lines: LineCollection, data: str, path: Path) -> list[str]:
    channels = model.network.input_shape[1]
    modes = {dataset.source_mode for dataset in lines.datasets}
    stored = {dataset.im_mode for dataset in lines.datasets}
    told = _COLOURS["RGB"] if "RGB" in modes else _COLOURS["L"] if "L" in modes else _COLOURS["1"]
    if channels == 3 and "RGB" not in stored:
        told = told if "RGB" not in modes else "stored as grey"
        return [f"{path} was trained on colour images, {data} are {told}."]
    if channels == 1 and model.one_channel_mode == "1" and modes != {"1"}:
        return [f"{path} was trained on black and white images, {data} are {told}: they are binarised."]
    if channels == 1 and model.one_channel_mode == "L" and modes == {"1"}:
        return [f"{path} was trained on grey images, {data} are black and white."]
    return []


def refuse_other_spec(given: str, network: VGSLNetwork) -> None:
    """Raise InputError where a spec that is not the default was given, of which another network than that
    loaded would be expected."""
    if given != DEFAULT_SPEC and _layers(parse_spec(given)) != _layers(network.parsed):
        raise InputError(
            f"--spec {given} asks for another network than its weights are of, {network.spec}; leave --spec "
            "out, or train a new network without --load"
        )


def _layers(spec: Spec) -> Spec:
    """A spec as blocks alone, however they are written and called, without the output layer, which training
    adds."""
    body = _unnamed(spec.body)
    layers = body.children[:-1] if isinstance(body.children[-1], Output) else body.children
    return replace(spec, body=replace(body, children=layers))


def _unnamed(group: Group) -> Group:
    children = [
        _unnamed(each)
        if isinstance(each, Group)
        else replace(each, position=0, text="", name="", canonical="")
        for each in group.children
    ]
    return replace(group, children=tuple(children))


def _renamed(options: Train) -> list[str]:
    mode = _RESIZE_MODES[options.resize]
    if mode == options.resize:
        return []
    return [f"--resize {options.resize} is an old name, which is now --resize {mode}; use that."]


def _alphabet_notes(options: Train, loaded: RecognitionModel, alphabet: Mapping[str, int]) -> list[str]:
    """The characters that only one side has, and what becomes of them."""
    mode = _RESIZE_MODES[options.resize]
    difference = codec_difference(loaded.codec, alphabet)
    notes = []
    if difference.lacking:
        counted = [f"{_shown(character)} ({count:,})" for character, count in difference.lacking.items()]
        notes.append(f"only in the training data, new to the model: {' '.join(counted)}")
    if difference.surplus:
        fate = "dropped" if mode == "new" else "kept"
        notes.append(f"only in the loaded model, {fate}: {' '.join(map(_shown, difference.surplus))}")
    return notes


def _shown(key: str) -> str:
    return "+".join(map(printable, key))


def _other_reading(options: Train, loaded: RecognitionModel, path: Path) -> list[str]:
    """A sentence where texts and padding are no longer those that the model has learned."""
    try:
        known = recorded_options(loaded)
    except InputError as error:
        return [f"{path}: {error}"]
    other = tuple(name for name, value in known.items() if getattr(options, name) != value)
    if not other:
        return []
    then = flags(replace(options, **{name: known[name] for name in other}), other)
    return [f"{path} was trained with {then}, this run is with {flags(options, other)}."]
