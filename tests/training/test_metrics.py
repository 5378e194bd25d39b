"""Error counts: the figures kraken gives, the alignment it chooses, and sums that do not depend on ranks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from distrib.stream.batches import BadLine
from distrib.training.breakdown import FileErrors, LineErrors, UnreadLines, WorstLines
from distrib.training.metrics import Edit, ErrorCounts, ScriptErrors, edits, script_name

TEXT = st.text(alphabet="ab Aß\u0301", max_size=12)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=8)
DEALT = st.lists(st.integers(0, 2), min_size=12, max_size=12)
"""The rank of each line."""


class Breakdown(NamedTuple):
    files: FileErrors
    worst: WorstLines
    unread: UnreadLines


def counted(pairs: list[tuple[str, str]], *, detailed: bool = True) -> ErrorCounts:
    counts = ErrorCounts.detailed() if detailed else ErrorCounts()
    for truth, prediction in pairs:
        counts.add(truth, prediction)
    return counts


def edits_by_full_matrix(truth: str, prediction: str) -> list[Edit]:
    """The textbook's quadratic table, traced back preferring deletion, insertion, diagonal."""
    distance = np.add.outer(np.arange(len(truth) + 1), np.arange(len(prediction) + 1))
    for row in range(1, len(truth) + 1):
        for column in range(1, len(prediction) + 1):
            differ = truth[row - 1] != prediction[column - 1]
            distance[row, column] = min(
                distance[row - 1, column - 1] + differ,
                distance[row - 1, column] + 1,
                distance[row, column - 1] + 1,
            )
    row, column, found = len(truth), len(prediction), []
    while row or column:
        here = distance[row, column]
        if row and distance[row - 1, column] + 1 == here:
            row -= 1
            found.append((truth[row], ""))
        elif column and distance[row, column - 1] + 1 == here:
            column -= 1
            found.append(("", prediction[column]))
        else:
            row, column = row - 1, column - 1
            if truth[row] != prediction[column]:
                found.append((truth[row], prediction[column]))
    return found[::-1]


@pytest.mark.oracle
def test_figures_equal_krakens(oracle_dir: Path) -> None:
    """Broken: our CER, WER or edit totals are not those users know from kraken."""
    recorded = json.loads((oracle_dir / "evaluation.json").read_text("utf-8"))
    counts = counted(recorded["pairs (truth, prediction)"])
    assert counts.errors == recorded["errors"]
    assert counts.cer == pytest.approx(recorded["cer"], rel=1e-6)
    assert counts.cer_case_insensitive == pytest.approx(recorded["cer_case_insensitive"], rel=1e-6)
    assert counts.wer == pytest.approx(recorded["wer"], rel=1e-6)
    assert (counts.insertions, counts.deletions, counts.substitutions) == (
        recorded["insertions"],
        recorded["deletions"],
        recorded["substitutions"],
    )
    assert {name: script.characters for name, script in counts.scripts.items()} == recorded["scripts"]


@given(TEXT, TEXT)
def test_alignment_is_the_full_matrix_one(truth: str, prediction: str) -> None:
    """Broken: the bit-parallel columns lead to another alignment, or a longer one."""
    found = edits(truth, prediction)
    assert found == edits_by_full_matrix(truth, prediction)
    assert len(found) == Levenshtein.distance(truth, prediction)


@given(st.integers(60, 70), st.integers(60, 70), st.randoms(use_true_random=False))
def test_alignment_of_lines_longer_than_a_machine_word(rows: int, columns: int, random) -> None:  # type: ignore[no-untyped-def]
    """Broken: bits are lost at the border of 64 characters."""
    truth = "".join(random.choices("abc", k=rows))
    prediction = "".join(random.choices("abc", k=columns))
    assert edits(truth, prediction) == edits_by_full_matrix(truth, prediction)


@given(PAIRS)
def test_light_and_detailed_agree(pairs: list[tuple[str, str]]) -> None:
    """Broken: validation and the test command report different rates for the same lines."""
    light, full = counted(pairs, detailed=False), counted(pairs)
    assert (light.to_vector() == full.to_vector()).all()
    assert full.insertions + full.deletions + full.substitutions == full.errors
    assert sum(script.characters for script in full.scripts.values()) == full.characters
    assert sum(s.missed for s in full.scripts.values()) == full.deletions + full.substitutions


@given(PAIRS, DEALT, st.integers(1, 4))
def test_parts_add_up(pairs: list[tuple[str, str]], ranks: list[int], most: int) -> None:
    """Broken: the figures, or the order of equals among them, depend on how the lines were dealt to ranks."""
    whole, parts = counted(pairs), [ErrorCounts.detailed() for _ in range(3)]
    for line in reversed(range(len(pairs))):
        parts[ranks[line]].add(*pairs[line], line=line)
    merged, merged_pieces = ErrorCounts.detailed(), ErrorCounts.detailed()
    for part in parts:
        merged.merge(part)
        for piece in part.pieces(most):
            assert max(map(len, (piece.detail.characters.counts, piece.detail.confusions.counts))) <= most
            merged_pieces.merge(piece)
    # As text: equal dictionaries may differ in order, and with them what is printed.
    assert json.dumps(merged.to_json()) == json.dumps(merged_pieces.to_json()) == json.dumps(whole.to_json())
    assert list(merged.scripts) == list(whole.scripts)
    summed = ErrorCounts.from_vector(sum(part.to_vector() for part in parts))
    assert (summed.cer, summed.wer, summed.lines) == (whole.cer, whole.wer, whole.lines)
    assert summed.to_vector().dtype == np.int64


@given(PAIRS)
def test_equals_stand_in_the_order_of_the_lines(pairs: list[tuple[str, str]]) -> None:
    """Broken: equally common confusions are listed in another order than kraken lists them."""
    counts, expected = counted(pairs), [edit for pair in pairs for edit in edits(*pair)]
    assert list(counts.confusions) == list(dict.fromkeys(expected))
    assert counts.confusions == Counter(expected)
    assert list(counts.to_json()["alphabet"]) == list(dict.fromkeys("".join(truth for truth, _ in pairs)))


def test_lowering_may_lengthen() -> None:
    """Broken: the case-insensitive rate divides by the length of another text."""
    counts = counted([("İa", "ib")])
    assert counts.characters == 2
    assert counts.characters_case_insensitive == 3
    assert counts.cer_case_insensitive == pytest.approx(2 / 3)


def test_empty_ground_truth_has_finite_rates() -> None:
    """Broken: a division by zero, or not-a-number in a log that is compared to choose the best model."""
    assert (ErrorCounts().cer, ErrorCounts().wer, ErrorCounts().accuracy) == (0.0, 0.0, 1.0)
    counts = counted([("", "ab")])
    assert counts.cer == 2.0
    assert counts.insertions == 2


def test_scripts_count_missed_ground_truth_only() -> None:
    """Broken: insertions are charged to a script of the ground truth."""
    counts = counted([("aб", "axxб"), ("б", "b")])
    assert counts.scripts == {
        "Latin": ScriptErrors(characters=1, missed=0),
        "Cyrillic": ScriptErrors(characters=2, missed=1),
    }
    assert counts.confusions == Counter({("", "x"): 2, ("б", "b"): 1})


@pytest.mark.parametrize(
    ("character", "script"),
    [
        ("ſ", "Latin"),
        (" ", "Common"),
        ("\u0364", "Inherited"),
        ("\ue000", "Unknown"),
        ("\U00010300", "Old Italic"),
        ("ا", "Arabic"),
    ],
)
def test_scripts_are_unicodes(character: str, script: str) -> None:
    """Broken: a row of the script table has another name than kraken's."""
    assert script_name(character) == script


def test_light_counts_refuse_detail() -> None:
    """Broken: light counts claim that nothing was inserted."""
    with pytest.raises(ValueError, match="detailed"):
        _ = ErrorCounts().insertions
    with pytest.raises(ValueError, match="detailed"):
        ErrorCounts.detailed().merge(ErrorCounts())


@given(
    st.lists(st.tuples(st.sampled_from(["b.xml", "a.xml", "c"]), TEXT, TEXT), max_size=12),
    DEALT,
    st.integers(1, 4),
)
def test_breakdown_does_not_depend_on_ranks(
    lines: list[tuple[str, str, str]], ranks: list[int], most: int
) -> None:
    """Broken: the worst lines, files or unread lines listed depend on how the lines were dealt to ranks."""

    def collect(chosen: list[int]) -> Breakdown:
        files, worst, unread = Breakdown(FileErrors(), WorstLines(keep=3), UnreadLines(keep=2))
        for line in chosen:
            source, truth, seen = lines[line]
            files.add(source, truth, seen)
            errors = Levenshtein.distance(truth, seen)
            worst.add(LineErrors(source=source, line_id=seen, truth=truth, prediction=seen, errors=errors))
            unread.add(BadLine(line, seen))
        return Breakdown(files, worst, unread)

    whole, merged = collect([*range(len(lines))]), collect([])
    for rank in (2, 0, 1):
        for mine, part in zip(
            merged, collect([x for x in range(len(lines)) if ranks[x] == rank]), strict=True
        ):
            for piece in part.pieces(most):
                mine.merge(piece)
    assert merged.files.to_json() == whole.files.to_json()
    assert merged.worst.worst_first() == whole.worst.worst_first()
    assert all(line.errors for line in whole.worst.worst_first())
    assert len(whole.worst.worst_first()) <= 3
    assert merged.unread.count == len(lines)
    assert [line for line, _ in merged.unread.in_order()] == [*range(len(lines))][:2]


def test_unread_lines_stay_bounded_and_counted() -> None:
    """Broken: a data set whose disk has gone fills the memory with reasons."""
    unread = UnreadLines(keep=2)
    for number in reversed(range(1000)):
        unread.add(BadLine(number, "gone"))
    assert unread.count == 1000
    assert [line for line, _ in unread.in_order()] == [0, 1]
    assert len(unread._kept) < 200


def test_worst_lines_stay_bounded_and_right() -> None:
    """Broken: memory grows with the lines of a test set, or a bad line is lost when candidates are cut."""
    worst = WorstLines(keep=2)
    for number in range(1000):
        errors = number * 7919 % 1000
        worst.add(LineErrors(source="s", line_id=str(number), truth="x", prediction="", errors=errors))
    assert [line.errors for line in worst.worst_first()] == [999, 998]
    assert len(worst._candidates) < 200
