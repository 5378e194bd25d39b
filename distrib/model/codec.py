"""The codec: text to labels and back.

Label 0 is the CTC blank and never a codec's. A codec may be many-to-many: a key of several code points
may have one label (a ligature) and a key several labels. Labels are unambiguous because no key's labels
begin with another key's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from distrib.errors import InputError

LabelSpan = tuple[int, int, int, float]
"""(label, first time step, last time step, confidence)."""
CharacterSpan = tuple[str, int, int, float]
"""(code point, first time step, last time step, confidence)."""


class Codec:
    """Maps keys (strings of one or more code points) to labels; immutable.

    ``c2l`` is the mapping, ``max_label`` the largest label (0 for an empty codec).
    """

    def __init__(self, c2l: Mapping[str, Sequence[int]]) -> None:
        """Take a mapping; raise InputError that names the keys which make it invalid."""
        self.c2l = {key: list(labels) for key, labels in c2l.items()}
        _validate(self.c2l)
        self.max_label = max((max(labels) for labels in self.c2l.values()), default=0)
        self._keys = {tuple(labels): key for key, labels in self.c2l.items()}
        self._lengths = sorted({len(labels) for labels in self._keys})
        self._single_keys = {labels[0]: key for labels, key in self._keys.items() if len(labels) == 1}
        self._encode, self._characters_only = _encoder(self.c2l)

    @classmethod
    def from_alphabet(cls, alphabet: Iterable[str]) -> Codec:
        """Number the distinct keys of an alphabet from 1 in code point order."""
        return cls({key: [label] for label, key in enumerate(sorted(set(alphabet)), start=1)})

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Sequence[int] | int] | Sequence[str]) -> Codec:
        """The codec of a codec file.

        That is an object ``{key: [labels]}``, in which one label may stand without brackets, or a string or
        a list of keys, which are numbered.
        """
        if not isinstance(mapping, Mapping):
            if not all(isinstance(key, str) for key in mapping):
                raise InputError("codec: an alphabet has to be a string or a list of strings")
            if len(set(mapping)) < len(mapping):
                twice = next(key for key in mapping if list(mapping).count(key) > 1)
                raise InputError(f"codec: {twice!r} is in the alphabet more than once; leave it there once")
            return cls.from_alphabet(mapping)
        return cls({key: labels if _is_list(labels) else [labels] for key, labels in mapping.items()})  # type: ignore[list-item,misc]

    def __len__(self) -> int:
        """The number of keys."""
        return len(self.c2l)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codec) and self.c2l == other.c2l

    def __hash__(self) -> int:
        return hash(frozenset(self._keys.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Codec, (self.c2l,)

    def __repr__(self) -> str:
        return f"Codec({self.c2l!r})"

    @property
    def num_classes(self) -> int:
        """Classes of an output layer for this codec: its labels and the blank."""
        return self.max_label + 1

    @property
    def unused(self) -> list[int]:
        """The labels below the largest one that no key has, in order."""
        used = {label for labels in self.c2l.values() for label in labels}
        return [label for label in range(1, self.max_label) if label not in used]

    def encode(self, text: str) -> list[int]:
        """The labels of a text, longest key first; what no key covers is skipped a code point at a time."""
        return self._encode(text)

    def unencodable(self, text: str) -> set[str]:
        """The code points that ``encode`` skips."""
        if self._characters_only is None:
            return set(text).difference(self.c2l)
        return set(self._characters_only.sub("", text))

    def decode_labels(self, labels: Iterable[int]) -> str:
        """The text of a label sequence; labels that begin no key's sequence are skipped."""
        if self._lengths in ([], [1]):
            keys = self._single_keys
            return "".join([keys[label] for label in labels if label in keys])
        sequence = tuple(labels)
        return "".join(self._keys[sequence[start:end]] for start, end in self._matches(sequence))

    def decode(self, labels: Sequence[LabelSpan]) -> list[CharacterSpan]:
        """Code points with their time steps and confidence.

        A key's span covers those of its labels and its confidence is their mean; each code point of the
        key gets both.
        """
        sequence = tuple(label for label, *_ in labels)
        decoded: list[CharacterSpan] = []
        for start, end in self._matches(sequence):
            spans = labels[start:end]
            first, last = min(span[1] for span in spans), max(span[2] for span in spans)
            confidence = fmean(span[3] for span in spans) if len(spans) > 1 else spans[0][3]
            decoded.extend((point, first, last, confidence) for point in self._keys[sequence[start:end]])
        return decoded

    def _matches(self, labels: tuple[int, ...]) -> Iterable[tuple[int, int]]:
        """(start, end) of each key's labels. At most one key fits, as no sequence begins with another."""
        start = 0
        while start < len(labels):
            ends = (start + length for length in self._lengths)
            end = next((end for end in ends if labels[start:end] in self._keys), None)
            if end is not None:
                yield start, end
            start = end if end is not None else start + 1

    def add_labels(self, addition: Iterable[str] | Mapping[str, Sequence[int]]) -> Codec:
        """A codec with more keys.

        New keys of an alphabet get labels after ``max_label`` in code point order and its known keys stay
        as they are; the keys of a mapping have the labels given there.
        """
        if isinstance(addition, Mapping):
            return Codec({**self.c2l, **addition})
        new = sorted(set(addition).difference(self.c2l))
        labels = range(self.max_label + 1, self.max_label + 1 + len(new))
        return Codec({**self.c2l, **{key: [label] for key, label in zip(new, labels, strict=True)}})

    def merge(self, other: Codec) -> tuple[Codec, set[int]]:
        """A codec with the keys of ``other`` that keeps as much of this one as possible.

        Returns it and the labels of this codec that it drops. Keys of both keep this codec's labels, moved
        down to close the gaps that dropped labels leave; other keys get labels after those.
        """
        kept = {key: labels for key, labels in self.c2l.items() if key in other.c2l}
        old = {label for labels in kept.values() for label in labels}
        removed = {label for labels in self.c2l.values() for label in labels} - old
        moved = {label: new for new, label in enumerate(sorted(old), start=1)}
        merged = {key: [moved[label] for label in labels] for key, labels in kept.items()}
        added = {key: labels for key, labels in other.c2l.items() if key not in kept}
        fresh = sorted({label for labels in added.values() for label in labels})
        numbers = {label: new for new, label in enumerate(fresh, start=len(moved) + 1)}
        merged |= {key: [numbers[label] for label in labels] for key, labels in added.items()}
        return Codec(merged), removed


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _encoder(
    c2l: Mapping[str, list[int]],
) -> tuple[Callable[[str], list[int]], re.Pattern[str] | None]:
    """The encoding function and, where keys have several code points, the pattern of all keys."""
    if any(len(key) > 1 for key in c2l):
        longest_first = sorted(c2l, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)))
        return lambda text: [label for key in pattern.findall(text) for label in c2l[key]], pattern
    if all(len(labels) == 1 for labels in c2l.values()):
        single = {key: labels[0] for key, labels in c2l.items()}
        return lambda text: [single[point] for point in text if point in single], None
    return lambda text: [label for point in text if point in c2l for label in c2l[point]], None


def _validate(c2l: Mapping[str, list[int]]) -> None:
    for key, labels in c2l.items():
        if not isinstance(key, str) or not key:
            raise InputError(
                f"codec: the key {key!r} with the labels {labels!r} is not a string of at least one code "
                "point; in YAML put it in quotes"
            )
        if not labels or not all(type(label) is int and label > 0 for label in labels):
            raise InputError(
                f"codec: {key!r} has the labels {labels!r}; give it one or more integers from 1 on "
                "(0 is the blank)"
            )
    # In sorted order a sequence that begins others stands directly before one of them.
    ordered = sorted(c2l, key=lambda key: c2l[key])
    for first, second in pairwise(ordered):
        if c2l[second][: len(c2l[first])] == c2l[first]:
            raise InputError(
                f"codec: the labels {c2l[second]} of {second!r} begin with the labels {c2l[first]} of "
                f"{first!r}, so that they cannot be told apart; give one of them other labels"
            )
