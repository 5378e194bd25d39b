"""The survey of texts, done on many at once, equals what the text pipeline does to each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.records import BaseDirection
from distrib.ground_truth.text import TextPipeline
from distrib.model.codec import Codec
from distrib.model.ctc import required_steps
from distrib.stream.lines import LineCollection
from distrib.training.survey import label_steps, survey, too_narrow


@dataclass(frozen=True)
class LineRecord:
    """A line as a collection hands it out; ``picture`` None is a damaged one."""

    picture: Image.Image | None
    normalized_height: int = 0

    def image(self) -> Image.Image:
        if self.picture is None:
            raise OSError("cut short")
        return self.picture


class Lines:
    """A collection of texts and images in memory that counts how many images are read."""

    def __init__(
        self,
        texts: Sequence[str],
        directions: Sequence[BaseDirection | None] | None = None,
        records: Sequence[LineRecord] = (),
        chunk: int = 3,
    ) -> None:
        self.texts = list(texts)
        self.directions = list(directions or [None] * len(self.texts))
        self.records, self.chunk, self.read = records, chunk, 0

    def __len__(self) -> int:
        return len(self.texts)

    def text_chunks(self) -> Iterator[tuple[int, list[str], list[BaseDirection | None]]]:
        for start in range(0, len(self), self.chunk):
            rows = slice(start, start + self.chunk)
            yield start, self.texts[rows], self.directions[rows]

    def record(self, line: int) -> LineRecord:
        self.read += 1
        return self.records[line]

    def as_collection(self) -> LineCollection:
        return cast(LineCollection, self)


# Text that tries every step: composing and reordering marks, Hangul, spaces of all kinds and the
# information separators, right-to-left and bidi formatting characters, brackets, U+0000.
_TROUBLE = (
    "ab  ()\u00e9e\u0301\u0323\u0345\u1100\u1161\u11a8\uac00\ufb01\u2126\x00\x1c\x1f\t\x85\xa0\u2003\u2028"
    "\u05d0\u05d1\u05b8\u0627\u0661\u202b\u202c\u2067\u2069\u200f\u0378\U0001d15e\U00010a60"
)
texts_of_lines = st.lists(
    st.text(st.one_of(st.sampled_from(_TROUBLE), st.characters(exclude_categories=["Cs"])), max_size=12),
    max_size=12,
)
pipelines = st.builds(
    TextPipeline,
    normalization=st.sampled_from([None, "NFC", "NFD", "NFKC", "NFKD"]),
    normalize_whitespace=st.booleans(),
    reorder=st.booleans(),
    base_dir=st.sampled_from(["auto", "auto", "L", "R"]),
)


@settings(max_examples=400, deadline=None)
@given(texts=texts_of_lines, pipeline=pipelines, data=st.data())
def test_the_survey_counts_what_the_pipeline_makes_of_each_line(
    texts: list[str], pipeline: TextPipeline, data: st.DataObject
) -> None:
    """A character that moves from one line to its neighbour, or a space too many, gives a false alphabet."""
    directions = data.draw(
        st.lists(st.sampled_from([None, "L", "R"]), min_size=len(texts), max_size=len(texts))
    )
    chosen = data.draw(st.lists(st.sampled_from(range(len(texts))) if texts else st.nothing()))
    lines = np.array(chosen, dtype=np.int64)
    collection = Lines(texts, directions)
    found = survey(collection.as_collection(), lines, pipeline)

    expected = [pipeline(text, direction) for text, direction in zip(texts, directions, strict=True)]
    assert found.alphabet == Counter("".join(expected[line] for line in set(chosen)))
    assert found.lines.tolist() == chosen
    assert found.lengths.tolist() == [len(expected[line]) for line in chosen]
    labels = [required_steps([ord(character) for character in expected[line]]) for line in chosen]
    assert (found.lengths + found.repeats).tolist() == labels
    assert found.empty.tolist() == [line for line in chosen if not expected[line]]


@settings(max_examples=200, deadline=None)
@given(
    texts=texts_of_lines,
    pipeline=pipelines,
    known=st.lists(st.sampled_from(_TROUBLE), unique=True),
    several=st.booleans(),
)
def test_steps_equal_those_of_the_encoded_lines(
    texts: list[str], pipeline: TextPipeline, known: list[str], several: bool
) -> None:
    """Lines are kept or left out by this number; characters without a label take part in none."""
    definition = {key: [label] for label, key in enumerate(known, start=1)}
    if several:
        definition |= {"ab": [100, 100], "Q": [101, 102]}
    codec = Codec(definition)
    collection = Lines(texts).as_collection()
    found = survey(collection, np.arange(len(texts)), pipeline)
    expected = [required_steps(codec.encode(pipeline(text))) for text in texts]
    assert label_steps(found, codec, collection, pipeline).tolist() == expected


def test_steps_of_a_plain_codec_need_no_second_pass() -> None:
    collection = Lines(["aab", "", "b"])
    found = survey(collection.as_collection(), np.arange(3), TextPipeline())
    codec = Codec.from_alphabet(found.alphabet)
    collection.texts.clear()
    assert label_steps(found, codec, collection.as_collection(), TextPipeline()).tolist() == [4, 0, 1]


def test_many_lines_take_little_time() -> None:
    """Ten million lines are surveyed before the first step; line by line it takes a quarter of an hour."""
    texts = [f"Zeile {number:06d} in Fraktur, nicht sonderlich lang noch kurz" for number in range(40_000)]
    collection = Lines(texts, chunk=8192).as_collection()
    pipeline = TextPipeline(normalization="NFD", normalize_whitespace=True, reorder=True)
    start = time.process_time()
    survey(collection, np.arange(len(texts)), pipeline)
    quick = time.process_time() - start
    start = time.process_time()
    for text in texts:
        Counter(pipeline(text))
    assert quick < (time.process_time() - start) / 3


def line_image(width: int, *, reach: int = 20) -> Image.Image:
    """A band of ink on paper; the further it reaches from the centre, the narrower it is straightened."""
    pixels = np.full((60, width), 255, dtype=np.uint8)
    pixels[30 - reach : 30 + reach : 3] = 0
    return Image.fromarray(pixels)


def steps_of(widths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return widths.astype(np.int64) // 8


TRANSFORM = NetworkInput(height=48, centerline=True)


def narrow_one_by_one(
    records: Sequence[LineRecord], needed: Sequence[int], transform: NetworkInput
) -> list[int]:
    """The lines that are too narrow by their images."""
    narrow = []
    for line, (record, steps) in enumerate(zip(records, needed, strict=True)):
        if record.picture is None:
            continue
        width = transform(record.picture, normalized_height=record.normalized_height).shape[2]
        if max(steps, 1) > width // 8:
            narrow.append(line)
    return narrow


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(20, 400), st.integers(2, 29), st.integers(0, 40), st.booleans()), max_size=8
    ),
    centerline=st.booleans(),
)
def test_narrow_lines_are_those_whose_images_are_too_narrow(
    shapes: list[tuple[int, int, int, bool]], centerline: bool
) -> None:
    """Widths that are only estimates must not decide: good lines would be left out and bad ones kept."""
    transform = NetworkInput(height=48, centerline=centerline)
    records = [
        LineRecord(
            line_image(width, reach=reach).resize((width, 48)) if stored else line_image(width, reach=reach),
            48 * stored,
        )
        for width, reach, _, stored in shapes
    ]
    stored = np.array([shape[3] for shape in shapes], dtype=bool)
    sizes = [record.picture.size for record in records if record.picture is not None]
    widths, heights = np.array(sizes, dtype=np.int32).reshape(-1, 2).T
    needed = [shape[2] for shape in shapes]
    columns = transform.output_widths(widths, heights, normalized=stored)
    collection = Lines([""] * len(shapes), records=records)
    narrow = too_narrow(
        collection.as_collection(),
        np.arange(len(shapes)),
        columns,
        stored if centerline else np.ones(len(shapes), dtype=bool),
        np.array(needed, dtype=np.int32),
        output_width=steps_of,
        network_input=transform,
    )
    assert narrow.tolist() == narrow_one_by_one(records, needed, transform)


def find_narrow(records: Sequence[LineRecord], needed: int, *, exact: bool) -> tuple[list[int], int]:
    collection = Lines([""] * len(records), records=records)
    columns = np.full(len(records), 200, dtype=np.int32)
    narrow = too_narrow(
        collection.as_collection(),
        np.arange(len(records)),
        columns,
        np.full(len(records), exact),
        np.full(len(records), needed, dtype=np.int32),
        output_width=steps_of,
        network_input=TRANSFORM,
    )
    return narrow.tolist(), collection.read


@pytest.mark.parametrize(("needed", "narrow"), [(25, []), (26, [0, 1])])
def test_exact_widths_decide_without_reading(needed: int, narrow: list[int]) -> None:
    assert find_narrow([LineRecord(line_image(100))] * 2, needed, exact=True) == (narrow, 0)


def test_only_lines_near_the_limit_are_read() -> None:
    """Straightening every line of a large data set before training would take hours."""
    assert find_narrow([LineRecord(line_image(100))] * 2, 5, exact=False) == ([], 0)
    assert find_narrow([LineRecord(line_image(100))] * 2, 24, exact=False)[1] == 2


def test_an_unreadable_line_is_not_called_narrow() -> None:
    """It is reported as what it is when it is read for training."""
    assert find_narrow([LineRecord(None)], 100, exact=False) == ([], 1)
    narrow = too_narrow(
        Lines(["a"]).as_collection(),
        np.arange(1),
        np.zeros(1, dtype=np.int32),
        np.ones(1, dtype=bool),
        np.ones(1, dtype=np.int32),
        output_width=steps_of,
        network_input=TRANSFORM,
    )
    assert narrow.tolist() == []


def test_a_line_without_labels_needs_a_step() -> None:
    widths = np.array([7, 80], dtype=np.int32)
    records = [LineRecord(line_image(100))] * 2
    narrow = too_narrow(
        Lines(["", ""], records=records).as_collection(),
        np.arange(2),
        widths,
        np.ones(2, dtype=bool),
        np.zeros(2, dtype=np.int32),
        output_width=steps_of,
        network_input=TRANSFORM,
    )
    assert narrow.tolist() == [0]
