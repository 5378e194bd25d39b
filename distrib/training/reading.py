"""How lines and their texts are read for a test: as the command line says, else as the model was trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distrib.config.fields import info_of
from distrib.config.learning import Train
from distrib.config.sections import Test
from distrib.config.values import make_section
from distrib.errors import InputError
from distrib.ground_truth.text import TextPipeline
from distrib.model.weights import RecognitionModel
from distrib.training.preparation import text_pipeline
from distrib.training.provenance import configuration

READING = ("normalization", "normalize_whitespace", "bidi_reordering", "base_dir", "padding")
"""Options of training that a test has to share, or it counts as errors what the model was never taught."""

_NO_NORMALIZATION = "none"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """``pipeline`` makes the texts, ``padding`` columns go left and right of a line; ``recorded`` names those
    of ``READING`` that are the model's own and other than what training does by default."""

    options: Train
    recorded: tuple[str, ...] = ()

    @property
    def pipeline(self) -> TextPipeline:
        return text_pipeline(self.options)

    @property
    def padding(self) -> int:
        return self.options.padding

    def __str__(self) -> str:
        """``-u NFD --pad 8``: the recorded ones as they would be given."""
        return flags(self.options, self.recorded)


def reading_of(options: Test, model: RecognitionModel | None = None) -> Reading:
    """What the options say; what they leave open is as the model was trained, else the default of training.

    Raises InputError where the model's record of that is damaged.
    """
    given = {name: getattr(options, name) for name in READING if getattr(options, name) is not None}
    if given.get("normalization") == _NO_NORMALIZATION:
        given["normalization"] = None
    left = [name for name in READING if name not in given]
    known = {} if model is None else recorded_options(model, left)
    standard = Train()
    return Reading(
        options=dataclasses.replace(standard, **known, **given),
        recorded=tuple(name for name in known if known[name] != getattr(standard, name)),
    )


def recorded_options(model: RecognitionModel, names: Iterable[str] = READING) -> dict[str, Any]:
    """Those of ``names`` that the model was trained with; empty for kraken's models, which do not say.

    Raises InputError where they are none.
    """
    stored = configuration(model.file_metadata)
    known = {name: stored[name] for name in names if name in stored}
    try:
        options = make_section(Train, "train", known)
    except InputError as error:
        missing = ", ".join(_info(name).flags[-1] for name in known)
        raise InputError(
            f"what it says of how it was trained is damaged: {str(error).rstrip('.')}; give {missing}"
        ) from None
    return {name: getattr(options, name) for name in known}


def flags(options: Train, names: tuple[str, ...]) -> str:
    """Options of ``READING`` as they would be given on a command line."""
    words = []
    for name in names:
        info, value = _info(name), getattr(options, name)
        if isinstance(value, bool):
            words.append((info.flags if value else info.off_flags)[-1])
        else:
            words.append(f"{info.flags[0]} {_NO_NORMALIZATION if value is None else value}")
    return " ".join(words)


def _info(name: str) -> Any:
    return next(info_of(field) for field in dataclasses.fields(Test) if field.name == name)
