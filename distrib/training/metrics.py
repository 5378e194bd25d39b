"""Recognition errors counted exactly: characters, words, edits, confusions, scripts.

One accumulator serves validation and ``ketos test``. Without detail it holds seven integers, with detail
also which characters were confused; both add up over ranks to what one process counts. Rates are quotients
of integers and never averages of rates, so what validation logs is what a test of the same lines reports.

Distances are Levenshtein's, insertion, deletion and substitution costing one each (V. I. Levenshtein,
1966), over code points for characters and over whitespace-separated tokens for words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from fontTools import unicodedata as unicode_data
from rapidfuzz.distance import Levenshtein

from distrib.training.tally import OrderedTally

Edit = tuple[str, str]
"""(character of the ground truth, character predicted); the empty string where one has none."""

_ADDITIVE = (
    "lines",
    "characters",
    "errors",
    "characters_case_insensitive",
    "errors_case_insensitive",
    "words",
    "word_errors",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptErrors:
    """Characters of one Unicode script in the ground truth, and how many were deleted or substituted."""

    characters: int
    missed: int

    @property
    def accuracy(self) -> float:
        """Share of the script's characters that were recognised, 0 to 1."""
        return (self.characters - self.missed) / self.characters


@dataclass(kw_only=True, slots=True)
class EditDetail:
    """What the light counts leave out: characters of the ground truth, and edits."""

    characters: OrderedTally[str] = field(default_factory=OrderedTally)
    confusions: OrderedTally[Edit] = field(default_factory=OrderedTally)


@dataclass(kw_only=True, slots=True)
class ErrorCounts:
    """Errors of any number of lines. Make one with ``detailed()`` to count confusions and scripts too.

    Case-insensitive figures compare ``str.lower`` of both texts and have their own number of
    characters, since lowering can change a text's length. The rates are errors divided by at least one
    character or word, so they are finite for empty ground truth; they pass 1 where more was inserted
    than the ground truth is long.
    """

    lines: int = 0
    characters: int = 0
    errors: int = 0
    characters_case_insensitive: int = 0
    errors_case_insensitive: int = 0
    words: int = 0
    word_errors: int = 0
    detail: EditDetail | None = None

    @classmethod
    def detailed(cls) -> ErrorCounts:
        """Empty counts that also keep edits, confusions and scripts; adding costs about tenfold."""
        return cls(detail=EditDetail())

    def add(self, truth: str, prediction: str, *, line: int | None = None) -> int:
        """Count one line and return its character errors.

        ``line`` is its number, by which characters and edits of any lines are put in order; without one
        lines are numbered as they come.
        """
        number = self.lines if line is None else line
        truth_lower, truth_words = truth.lower(), truth.split()
        errors = Levenshtein.distance(truth, prediction)
        self.lines += 1
        self.characters += len(truth)
        self.characters_case_insensitive += len(truth_lower)
        self.words += len(truth_words)
        if errors:
            self.errors += errors
            self.errors_case_insensitive += Levenshtein.distance(truth_lower, prediction.lower())
            self.word_errors += Levenshtein.distance(truth_words, prediction.split())
        if self.detail is not None:
            self.detail.characters.add(number, truth)
            if errors:
                self.detail.confusions.add(number, edits(truth, prediction))
        return errors

    def merge(self, other: ErrorCounts) -> None:
        """Add what ``other`` counted in other lines; detail is merged where this one keeps it.

        Raises:
            ValueError: this one keeps detail and ``other`` has none to give.
        """
        if self.detail is not None:
            theirs = other._required_detail()
            self.detail.characters.merge(theirs.characters)
            self.detail.confusions.merge(theirs.confusions)
        for name in _ADDITIVE:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def pieces(self, most: int) -> Iterator[ErrorCounts]:
        """Counts with at most ``most`` characters or edits in their detail each, which merged are these."""
        whole = ErrorCounts.from_vector(self.to_vector())
        if self.detail is None:
            yield whole
            return
        whole.detail = EditDetail()
        yield whole
        for characters in self.detail.characters.pieces(most):
            yield ErrorCounts(detail=EditDetail(characters=characters))
        for confusions in self.detail.confusions.pieces(most):
            yield ErrorCounts(detail=EditDetail(confusions=confusions))

    def to_vector(self) -> npt.NDArray[np.int64]:
        """The additive integers, int64 ``(7,)``: vectors of several ranks are summed element by element."""
        return np.array([getattr(self, name) for name in _ADDITIVE], dtype=np.int64)

    @classmethod
    def from_vector(cls, vector: npt.NDArray[np.int64]) -> ErrorCounts:
        """Light counts from (a sum of) ``to_vector``."""
        counts = cls()
        for name, value in zip(_ADDITIVE, vector, strict=True):
            setattr(counts, name, int(value))
        return counts

    @property
    def cer(self) -> float:
        """Character error rate, 0 for no errors."""
        return _rate(self.errors, self.characters)

    @property
    def cer_case_insensitive(self) -> float:
        """Character error rate of the lowered texts."""
        return _rate(self.errors_case_insensitive, self.characters_case_insensitive)

    @property
    def wer(self) -> float:
        """Word error rate, words being what ``str.split`` yields."""
        return _rate(self.word_errors, self.words)

    @property
    def accuracy(self) -> float:
        """1 - CER; below 0 where errors outnumber characters."""
        return 1.0 - self.cer

    @property
    def word_accuracy(self) -> float:
        """1 - WER."""
        return 1.0 - self.wer

    @property
    def insertions(self) -> int:
        """Predicted characters that the ground truth does not have. Needs detail, as do all below."""
        return sum(count for (truth, _), count in self._edit_counts.items() if not truth)

    @property
    def deletions(self) -> int:
        """Characters of the ground truth that were not predicted."""
        return sum(count for (_, predicted), count in self._edit_counts.items() if not predicted)

    @property
    def substitutions(self) -> int:
        """Characters of the ground truth for which another was predicted."""
        return sum(count for edit, count in self._edit_counts.items() if all(edit))

    @property
    def confusions(self) -> Counter[Edit]:
        """How often each edit occurred, in the order in which the lines first have it."""
        return self._required_detail().confusions.in_order()

    @property
    def scripts(self) -> dict[str, ScriptErrors]:
        """Per Unicode script (UAX #24 long name, spaces for underscores), ordered as ``confusions``."""
        counted: Counter[str] = Counter()
        for character, count in self._required_detail().characters.in_order().items():
            counted[script_name(character)] += count
        missed: Counter[str] = Counter()
        for (truth, _), count in self._edit_counts.items():
            if truth:
                missed[script_name(truth)] += count
        return {name: ScriptErrors(characters=counted[name], missed=missed[name]) for name in counted}

    def to_json(self) -> dict[str, Any]:
        """Counts and rates as plain JSON values; confusions as [truth, predicted, count], commonest first."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in _ADDITIVE}
        plain |= {"cer": self.cer, "cer_case_insensitive": self.cer_case_insensitive, "wer": self.wer}
        if self.detail is None:
            return plain
        plain |= {
            "insertions": self.insertions,
            "deletions": self.deletions,
            "substitutions": self.substitutions,
            "scripts": {
                name: {"characters": script.characters, "missed": script.missed}
                for name, script in self.scripts.items()
            },
            "alphabet": dict(self.detail.characters.in_order()),
            "confusions": [[*edit, count] for edit, count in self.confusions.most_common()],
        }
        return plain

    @property
    def _edit_counts(self) -> Counter[Edit]:
        return self._required_detail().confusions.counts

    def _required_detail(self) -> EditDetail:
        if self.detail is None:
            raise ValueError("light ErrorCounts keep no edits; make them with ErrorCounts.detailed()")
        return self.detail


def edits(truth: str, prediction: str) -> list[Edit]:
    """The edits that turn ``truth`` into ``prediction``, left to right; as many as their distance.

    Of several equally short alignments it is the one a trace back from the ends of both texts finds
    when it prefers a deletion, then an insertion, then going on diagonally. kraken's reports agree with
    that choice and rapidfuzz's edit operations do not, hence this implementation of the bit-parallel
    algorithm (H. Hyyrö, A Bit-Vector Algorithm for Computing Levenshtein and Damerau Edit Distances,
    2003): a column of the distance matrix is a few integers, so a line costs about as many integer
    operations as the prediction has characters.
    """
    places: dict[str, int] = {}
    for row, character in enumerate(truth):
        places[character] = places.get(character, 0) | 1 << row
    every_row = (1 << len(truth)) - 1
    # Bit r of column c: D[r + 1, c] - D[r, c] is +1 (down) or -1 (up), D[r + 1, c] - D[r + 1, c - 1] is +1
    # (right): a step back that way from there is then optimal.
    down, up = every_row, 0
    columns = [(down, 0)]
    for character in prediction:
        equal = places.get(character, 0)
        diagonal = (((equal & down) + down) ^ down) | equal | up
        right = (up | ~(diagonal | down)) & every_row
        left = diagonal & down
        right_shifted = right << 1 | 1
        down = (left << 1 | ~(diagonal | right_shifted)) & every_row
        up = right_shifted & diagonal & every_row
        columns.append((down, right))
    return _trace_back(truth, prediction, columns)


def _trace_back(truth: str, prediction: str, columns: list[tuple[int, int]]) -> list[Edit]:
    found: list[Edit] = []
    row, column = len(truth), len(prediction)
    while row or column:
        down, right = columns[column]
        bit = 1 << row >> 1
        if row and down & bit:
            row -= 1
            found.append((truth[row], ""))
        elif column and (not row or right & bit):
            column -= 1
            found.append(("", prediction[column]))
        else:
            row, column = row - 1, column - 1
            if truth[row] != prediction[column]:
                found.append((truth[row], prediction[column]))
    return found[::-1]


def script_name(character: str) -> str:
    """The Unicode script of one character by its long name: ``Latin``, ``Old Italic``, ``Common``."""
    name: str = unicode_data.script_name(unicode_data.script(character))
    return name


def _rate(errors: int, total: int) -> float:
    return errors / max(total, 1)
