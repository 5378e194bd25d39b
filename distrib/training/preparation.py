"""What is decided before the first step: which lines are trained on, with which alphabet and codec."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distrib.config.learning import Learning, Train
from distrib.errors import InputError
from distrib.ground_truth.text import TextPipeline
from distrib.model.codec import Codec
from distrib.model.resize import codec_difference
from distrib.stream.lines import SPLIT_CODES, LineCollection
from distrib.stream.partition import training_mask

Lines = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class LineSets:
    """The lines of a collection to train on, those of another (or the same) to validate on, and who chose."""

    training: LineCollection
    training_lines: Lines
    validation: LineCollection
    validation_lines: Lines
    origin: str


def split_lines(
    training: LineCollection, validation: LineCollection | None, options: Learning, seed: int
) -> LineSets:
    """Choose training and validation lines: ``-e``, else the data set's own splits, else by key.

    Raises InputError where a side would be empty or ``--split-by page`` has no page names to go by.
    """
    index = training.index()
    usable = index.splits != SPLIT_CODES["test"]
    lines = np.flatnonzero(usable)
    if not lines.size:
        raise InputError("Every line is marked as test; there is none to train on.")
    if validation is not None:
        if validation.line_type != training.line_type:
            raise InputError(
                f"The training data hold {training.line_type} lines, those of -e {validation.line_type} "
                "lines; give both the same type (--linetype, or `ketos compile --force-type`)."
            )
        held = np.arange(len(validation), dtype=np.int64)
        return LineSets(
            training=training,
            training_lines=lines,
            validation=validation,
            validation_lines=held,
            origin="as given",
        )
    if np.any(index.splits == SPLIT_CODES["validation"]):
        chosen = index.splits == SPLIT_CODES["validation"]
        usable &= ~chosen
        if not usable.any():
            raise InputError(
                "Every line is marked as validation or test, none to train on; give others with -t."
            )
        return _one_collection(
            training, np.flatnonzero(usable), np.flatnonzero(chosen), "as marked in the data"
        )
    keys = index.keys
    if options.split_by == "page":
        if index.page_keys is None:
            raise InputError(
                "--split-by page: the data set does not name the pages its lines come from; compile it with "
                "`ketos compile`, or split by line."
            )
        keys = index.page_keys
    mask = training_mask(keys[lines], ratio=options.partition, seed=seed)
    if mask.all():
        raise InputError(
            f"--partition {options.partition:g} of {lines.size} lines leaves none to validate on; give a "
            "smaller share or validation data with -e."
        )
    origin = f"split by {options.split_by}"
    return _one_collection(training, lines[mask], lines[~mask], origin)


def text_pipeline(options: Train) -> TextPipeline:
    """The text normalisation that the options of training ask for."""
    return TextPipeline(
        normalization=options.normalization,
        normalize_whitespace=options.normalize_whitespace,
        reorder=options.bidi_reordering,
        base_dir=options.base_dir,
    )


def describe_alphabet(counts: Counter[str], *, limit: int = 60) -> str:
    """The characters, commonest first, control and combining ones by code point."""
    shown = [printable(character) for character, _ in counts.most_common(limit)]
    rest = len(counts) - len(shown)
    return " ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def alphabet_difference(training: Iterable[str], validation: Iterable[str]) -> tuple[list[str], list[str]]:
    """(characters only in training, characters only in validation), sorted."""
    ours, theirs = set(training), set(validation)
    return sorted(ours - theirs), sorted(theirs - ours)


def printable(character: str) -> str:
    """A character as shown to a person: itself, or U+XXXX with its name where it has no shape of its own."""
    if unicodedata.category(character)[0] in "CZM":
        return f"U+{ord(character):04X}"
    return character


def load_codec(definition: dict[str, Sequence[int]] | None, alphabet: Counter[str]) -> Codec:
    """The codec given, or a label for each character of the alphabet in code point order.

    Raises InputError for an empty alphabet, an ambiguous codec or one that lacks a character.
    """
    if not alphabet:
        raise InputError(
            "The training lines hold no text at all, so there is no alphabet; give transcribed lines."
        )
    if definition is None:
        return Codec.from_alphabet(sorted(alphabet))
    codec = Codec.from_mapping(definition)
    missing = codec_difference(codec, alphabet).lacking
    if missing:
        listed = ", ".join(f"{printable(character)} ({count})" for character, count in missing.items())
        raise InputError(f"--codec has no label for {listed}, which the training lines hold; add it.")
    return codec


def _one_collection(collection: LineCollection, training: Lines, validation: Lines, origin: str) -> LineSets:
    return LineSets(
        training=collection,
        training_lines=training,
        validation=collection,
        validation_lines=validation,
        origin=origin,
    )
