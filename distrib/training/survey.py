"""What the texts of a data set hold, and which lines are too narrow for theirs, before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.records import BaseDirection
from distrib.ground_truth.text import TextPipeline
from distrib.ground_truth.text_measures import TextMeter
from distrib.model.codec import Codec
from distrib.model.ctc import required_steps
from distrib.stream.batches import UNREADABLE
from distrib.stream.lines import LineCollection

Lines = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
OutputWidth = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""Output steps of a network for widths of its input, (N,) to (N,)."""

_ESTIMATE_MARGIN = 1.5
"""How many times wider than it is a straightened line may be taken for, with room to spare: it was 1.29 times
at most for 1,612 lines of six collections of print and manuscript."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the texts of n lines hold, as normalised.

    ``alphabet`` counts their characters. ``lines`` int64 (n,) are the lines as asked for; ``lengths`` int32
    (n,) their code points and ``repeats`` int32 (n,) those of them equal to the one before.
    """

    alphabet: Counter[str]
    lines: Lines
    lengths: Int32
    repeats: Int32

    @property
    def empty(self) -> Lines:
        """The lines without any text."""
        return np.asarray(self.lines[self.lengths == 0], dtype=np.int64)


def survey(collection: LineCollection, lines: Lines, pipeline: TextPipeline) -> Survey:
    """Count the characters of the chosen lines, each line once, and measure the lines."""
    return _survey(collection, lines, pipeline, ignored=())


def label_steps(
    found: Survey, codec: Codec, collection: LineCollection, pipeline: TextPipeline
) -> npt.NDArray[np.int32]:
    """The time steps CTC needs for each line of a survey, int32 (n,), 0 for a line without labels.

    ``collection`` and ``pipeline`` are those of the survey; the texts are read again only where the codec
    is not one of a label for each character of the alphabet.
    """
    if any(len(key) > 1 or len(labels) > 1 for key, labels in codec.c2l.items()):
        return _encoded_steps(collection, found.lines, pipeline, codec)
    ignored = [character for character in found.alphabet if character not in codec.c2l]
    if ignored:
        found = _survey(collection, found.lines, pipeline, ignored=ignored)
    return found.lengths + found.repeats


def too_narrow(
    collection: LineCollection,
    lines: Lines,
    widths: Int32,
    exact: npt.NDArray[np.bool_],
    needed: Int32,
    *,
    output_width: OutputWidth,
    network_input: NetworkInput,
) -> Lines:
    """Those of ``lines`` (n,) whose labels CTC cannot align with the output steps there are for them.

    ``widths`` (n,) are theirs as network input, true where ``exact`` (n,), else estimates: lines near the
    limit by them are straightened to be sure, and those that cannot be read are not named. ``needed`` (n,)
    are the steps their labels need; a line without labels needs one, as no network makes anything of less.
    """
    available = output_width(widths.astype(np.int64))
    wanted = np.maximum(needed, 1).astype(np.int64)
    # A width of 0 is that of a damaged image: reading it for training will tell about it.
    narrow = (wanted > available) & (widths > 0)
    uncertain = np.flatnonzero(~exact & (wanted * _ESTIMATE_MARGIN > available))
    for position in uncertain.tolist():
        width = _measured_width(collection, int(lines[position]), network_input)
        narrow[position] = width is not None and wanted[position] > output_width(np.array([width]))[0]
    return np.asarray(lines[narrow], dtype=np.int64)


def _measured_width(collection: LineCollection, line: int, network_input: NetworkInput) -> int | None:
    """The width of a line as network input, from its image; None where it cannot be read."""
    try:
        record = collection.record(line)
        pixels = network_input(record.image(), normalized_height=record.normalized_height)
    except UNREADABLE:
        return None
    return int(pixels.shape[2])


def _encoded_steps(
    collection: LineCollection, lines: Lines, pipeline: TextPipeline, codec: Codec
) -> npt.NDArray[np.int32]:
    distinct, places = _distinct(lines)
    steps = np.zeros(len(distinct), dtype=np.int32)
    for rows, texts, directions in _chosen_chunks(collection, distinct):
        steps[rows] = [
            required_steps(codec.encode(pipeline(text, direction)))
            for text, direction in zip(texts, directions, strict=True)
        ]
    return steps[places]


def _survey(
    collection: LineCollection, lines: Lines, pipeline: TextPipeline, *, ignored: Iterable[str]
) -> Survey:
    distinct, places = _distinct(lines)
    lengths, repeats = np.zeros((2, len(distinct)), dtype=np.int32)
    meter = TextMeter(pipeline, ignored=ignored)
    for rows, texts, directions in _chosen_chunks(collection, distinct):
        lengths[rows], repeats[rows] = meter(texts, directions)
    return Survey(alphabet=meter.alphabet, lines=lines, lengths=lengths[places], repeats=repeats[places])


def _distinct(lines: Lines) -> tuple[Lines, npt.NDArray[np.intp] | slice]:
    """The lines in order, each once, and where among them those given are."""
    if (lines[1:] > lines[:-1]).all():
        return lines, slice(None)
    return np.unique(lines, return_inverse=True)


def _chosen_chunks(
    collection: LineCollection, lines: Lines
) -> Iterator[tuple[slice, list[str], list[BaseDirection | None]]]:
    """(which of ``lines``, their texts, their stated directions) a chunk of the collection at a time."""
    for start, texts, directions in collection.text_chunks():
        first, last = np.searchsorted(lines, [start, start + len(texts)]).tolist()
        if first == last:
            continue
        if last - first < len(texts):
            chosen = (lines[first:last] - start).tolist()
            texts = [texts[row] for row in chosen]
            directions = [directions[row] for row in chosen]
        yield slice(first, last), texts, directions
