"""What data sets hold, from their indexes and metadata: no image is read.

The facts of several data sets together are those of all their lines, so that a line that occurs in two of
them counts as a duplicate of the whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

from distrib.ground_truth.network_input import NetworkInput
from distrib.ground_truth.records import BaseDirection
from distrib.ground_truth.text import TextPipeline
from distrib.ground_truth.text_measures import TextMeter
from distrib.shards.arrow import open_arrow
from distrib.shards.arrow_schema import SPLITS
from distrib.shards.folder_listing import join
from distrib.shards.manifest import MANIFEST_NAME, read_manifest
from distrib.shards.remote import is_remote, local_file, shown_address

if TYPE_CHECKING:
    from distrib.shards.dataset import Dataset

OutputWidth = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""Output steps of a network for widths of its input, (N,) to (N,)."""

Value = TypeVar("Value")

EXAMPLES: Final = 20
"""Lines named, at most, of those that are too narrow."""

HISTOGRAM_BINS: Final = 10
PERCENTILES: Final = (0, 5, 25, 50, 75, 95, 100)
UNMARKED: Final = "none"

_LONGEST: Final = 1 << 20
"""Pixels; a length beyond counts as this long, so that a broken header cannot ask for memory."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What lines are to be wide enough for: the input of a network and its output steps."""

    network_input: NetworkInput
    """For lines of boxes; for those of baselines the same without ``centerline``."""
    output_width: OutputWidth


@dataclass(frozen=True, kw_only=True)
class NarrowLine:
    """A line with fewer output steps than its characters need; ``line`` counts from 0 in its data set."""

    dataset: str
    line: int
    source: str | None
    line_id: str | None
    steps: int
    needed: int
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How many lines have which length in pixels: ``counts[i]`` have length ``i``."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int32]) -> Lengths:
        """Count lengths (N,); 0 is that of a line whose image has no readable header, and not counted."""
        counts = np.bincount(np.minimum(lengths[lengths > 0], _LONGEST), minlength=1)
        return cls(counts=counts.astype(np.int64))

    def __add__(self, other: Lengths) -> Lengths:
        long, short = sorted((self.counts, other.counts), key=len, reverse=True)
        total = long.copy()
        total[: len(short)] += short
        return Lengths(counts=total)

    def percentiles(self) -> dict[int, int]:
        """The length that so many per cent of the lines do not exceed; empty without lines."""
        upto = self.counts.cumsum()
        if not upto[-1]:
            return {}
        ranks = np.maximum(np.ceil(upto[-1] * np.array(PERCENTILES) / 100), 1)
        lengths = np.searchsorted(upto, ranks)
        return dict(zip(PERCENTILES, lengths.tolist(), strict=True))

    def histogram(self) -> list[tuple[int, int, int]]:
        """(shortest, longest, lines) of about ten stretches of equal length, a round number of pixels."""
        lengths = np.flatnonzero(self.counts)
        if not lengths.size:
            return []
        bin_ = _round_up((int(lengths[-1]) + 1) / HISTOGRAM_BINS)
        lines = np.bincount(lengths // bin_, weights=self.counts[lengths])
        first = int(lengths[0]) // bin_
        return [(i * bin_, (i + 1) * bin_ - 1, int(lines[i])) for i in range(first, len(lines))]


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What one or several data sets hold.

    ``line_type``, ``im_mode`` and ``source_mode`` (of the images as they were cut), ``normalized_height``
    (0: lines as cut) and ``legacy_polygons`` are those of all data sets, in order. ``alphabet`` counts
    characters of raw texts. ``languages`` counts lines; None where a data set does not say. ``input_widths``
    are those as network input, padding included, of which ``estimated`` are not sure. ``same_key`` and
    ``same_content`` count lines beyond the first with one key, or with one image and text. ``narrow`` lines
    cannot be aligned by CTC, ``narrow_estimated`` of them by an estimate; ``examples`` are some of them.
    """

    name: str
    line_type: tuple[str, ...]
    im_mode: tuple[str, ...]
    source_mode: tuple[str, ...]
    normalized_height: tuple[int, ...]
    legacy_polygons: tuple[bool, ...]
    lines: int
    empty: int
    shards: int
    bytes: int
    alphabet: Counter[str]
    languages: Mapping[str, int] | None
    splits: Mapping[str, int]
    widths: Lengths
    heights: Lengths
    input_widths: Lengths
    estimated: int
    unmeasured: int
    same_key: int
    same_content: int
    narrow: int
    narrow_estimated: int
    examples: Sequence[NarrowLine]
    problems: Sequence[str]

    @property
    def characters(self) -> int:
        """Code points of all texts."""
        return self.alphabet.total()


class Inspector:
    """Collects the facts of data sets, and of all of them together.

    It keeps 16 bytes a line to find duplicates.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.facts: list[DatasetFacts] = []
        self._keys: list[npt.NDArray[np.uint64]] = []
        self._contents: list[npt.NDArray[np.uint64]] = []

    def add(self, dataset: Dataset) -> DatasetFacts:
        """The facts of a data set. Raises InputError where its index or metadata is damaged."""
        index = dataset.index
        texts = _read_texts(dataset)
        widths, heights, splits = (index.column(name) for name in ("width", "height", "split"))
        columns, exact = _input_widths(dataset, self.network.network_input, widths, heights)
        steps = self.network.output_width(columns.astype(np.int64))
        narrow = (texts.needed > steps) & (columns > 0)
        keys = index.column("key")
        contents = _content_keys(index.column("image_crc"), index.column("image_bytes"), texts.hashes)
        self._keys.append(keys)
        self._contents.append(contents)
        counts = np.bincount(splits, minlength=len(SPLITS) + 1).tolist()
        facts = DatasetFacts(
            name=_shown(dataset.name),
            line_type=(dataset.line_type,),
            im_mode=(dataset.im_mode,),
            source_mode=(dataset.source_mode,),
            normalized_height=(dataset.normalized_height,),
            legacy_polygons=(dataset.legacy_polygons,),
            lines=len(index),
            empty=texts.empty,
            shards=len(dataset.shards),
            bytes=sum(shard.bytes for shard in dataset.shards),
            alphabet=texts.alphabet,
            languages=_recorded_languages(dataset),
            splits=dict(zip((UNMARKED, *SPLITS), counts, strict=False)),
            widths=Lengths.of(widths),
            heights=Lengths.of(heights),
            input_widths=Lengths.of(columns),
            estimated=int(np.count_nonzero(~exact & (columns > 0))),
            unmeasured=int(np.count_nonzero(columns == 0)),
            same_key=_repeated(keys),
            same_content=_repeated(contents),
            narrow=int(np.count_nonzero(narrow)),
            narrow_estimated=int(np.count_nonzero(narrow & ~exact)),
            examples=_examples(dataset, narrow, steps, texts.needed, exact),
            problems=tuple(dataset.problems),
        )
        self.facts.append(facts)
        return facts

    def total(self) -> DatasetFacts:
        """The facts of all data sets added so far, at least one."""
        parts = self.facts
        languages = [part.languages for part in parts if part.languages is not None]
        examples = [example for part in parts for example in part.examples]
        return DatasetFacts(
            name="all",
            line_type=_distinct(part.line_type for part in parts),
            im_mode=_distinct(part.im_mode for part in parts),
            source_mode=_distinct(part.source_mode for part in parts),
            normalized_height=_distinct(part.normalized_height for part in parts),
            legacy_polygons=_distinct(part.legacy_polygons for part in parts),
            lines=sum(part.lines for part in parts),
            empty=sum(part.empty for part in parts),
            shards=sum(part.shards for part in parts),
            bytes=sum(part.bytes for part in parts),
            alphabet=sum((part.alphabet for part in parts), Counter()),
            languages=_sum_counts(languages) if len(languages) == len(parts) else None,
            splits=_sum_counts([part.splits for part in parts]),
            widths=sum((part.widths for part in parts), Lengths()),
            heights=sum((part.heights for part in parts), Lengths()),
            input_widths=sum((part.input_widths for part in parts), Lengths()),
            estimated=sum(part.estimated for part in parts),
            unmeasured=sum(part.unmeasured for part in parts),
            same_key=_repeated(np.concatenate(self._keys)),
            same_content=_repeated(np.concatenate(self._contents)),
            narrow=sum(part.narrow for part in parts),
            narrow_estimated=sum(part.narrow_estimated for part in parts),
            examples=examples[:EXAMPLES],
            problems=[f"{part.name}: {problem}" for part in parts for problem in part.problems],
        )


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """Of the raw texts of N lines: ``needed`` CTC steps int64 (N,) and ``hashes`` uint64 (N,)."""

    alphabet: Counter[str]
    empty: int
    needed: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]


def _read_texts(dataset: Dataset) -> _Texts:
    count = len(dataset.index)
    needed, hashes = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    meter, empty = TextMeter(TextPipeline()), 0
    for start, texts, directions in dataset.index.text_chunks():
        rows = slice(start, start + len(texts))
        lengths, repeats = meter(texts, cast("list[BaseDirection | None]", directions))
        needed[rows] = lengths + repeats
        hashes[rows] = np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))
        empty += sum(not text or text.isspace() for text in texts)
    return _Texts(alphabet=meter.alphabet, empty=empty, needed=needed, hashes=hashes.view(np.uint64))


def _input_widths(
    dataset: Dataset,
    network_input: NetworkInput,
    widths: npt.NDArray[np.int32],
    heights: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Columns (N,) of all lines as input of the network, padding included, and which of them are exact."""
    if dataset.line_type != "bbox":
        network_input = replace(network_input, centerline=False)
    normalized = dataset.normalized_height > 0
    columns = network_input.output_widths(widths, heights, normalized=normalized)
    if normalized or not network_input.follows_centerline:
        return columns, np.ones(len(columns), dtype=bool)
    stored = dataset.index.column("columns")
    known = (stored > 0) & (dataset.height == network_input.height)
    return np.where(known, stored + 2 * network_input.pad, columns).astype(np.int32), known


def _recorded_languages(dataset: Dataset) -> Mapping[str, int] | None:
    """Lines of each language by dataset.json or the metadata of Arrow files; None where they do not say."""
    if all(shard.checksum is not None for shard in dataset.shards):
        return read_manifest(join(dataset.name, MANIFEST_NAME)).languages
    if any(is_remote(shard.address) or not shard.address.endswith(".arrow") for shard in dataset.shards):
        return None
    return _sum_counts([open_arrow(local_file(shard.address)).metadata.languages for shard in dataset.shards])


def _examples(
    dataset: Dataset,
    narrow: npt.NDArray[np.bool_],
    steps: npt.NDArray[np.int64],
    needed: npt.NDArray[np.int64],
    exact: npt.NDArray[np.bool_],
) -> list[NarrowLine]:
    examples = []
    for line in np.flatnonzero(narrow)[:EXAMPLES].tolist():
        entry = dataset.index.entry(line)
        examples.append(
            NarrowLine(
                dataset=_shown(dataset.name),
                line=line,
                source=entry.source,
                line_id=entry.line_id,
                steps=int(steps[line]),
                needed=int(needed[line]),
                exact=bool(exact[line]),
            )
        )
    return examples


def _content_keys(
    crcs: npt.NDArray[np.uint32], sizes: npt.NDArray[np.int32], hashes: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """A key (N,) of image and text; equal ones are by chance alone about once in 10**19 pairs."""
    image = crcs.astype(np.uint64) << np.uint64(32) | sizes.astype(np.uint64)
    return hashes ^ image * np.uint64(0x9E3779B97F4A7C15)


def _repeated(keys: npt.NDArray[np.uint64]) -> int:
    """How many keys (N,) are those of an earlier one."""
    keys = np.sort(keys)
    return int(np.count_nonzero(keys[1:] == keys[:-1]))


def _distinct(groups: Iterable[tuple[Value, ...]]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(groups)))


def _sum_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total


def _round_up(length: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if factor * step >= length:
                return factor * step
        step *= 10


def _shown(address: str) -> str:
    """An address without the secrets that may stand in it."""
    return shown_address(address) if is_remote(address) else address
