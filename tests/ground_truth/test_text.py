"""The text a model learns: normalisation, whitespace, display order."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from bidi.algorithm import get_display
from hypothesis import assume, given
from hypothesis import strategies as st

from distrib.ground_truth.display_order import display_order
from distrib.ground_truth.text import TextPipeline, normalize_whitespace, single_line

ANY_DIRECTION = st.sampled_from([None, "L", "R"])
MIXED_TEXT = st.text(alphabet="abc שלום نص 123 ٣ ()[]«»/-.,'\u0301\u200f\u200e", max_size=40)


@pytest.mark.oracle
def test_every_recorded_text_comes_out_as_recorded(oracle_dir: Path) -> None:
    """Labels would differ from those of models trained elsewhere."""
    entries = json.loads((oracle_dir / "text.json").read_text(encoding="utf-8"))
    assert entries
    for entry in entries:
        text = entry["in"]
        assert TextPipeline(normalize_whitespace=True)(text) == entry["whitespace"]
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            assert TextPipeline(normalization=form)(text) == entry[form]
        for direction in ("auto", "L", "R"):
            assert TextPipeline(reorder=True, base_dir=direction)(text) == entry[f"display_{direction}"]


@given(MIXED_TEXT | st.text(max_size=20).filter(lambda text: "\n" not in text), ANY_DIRECTION)
def test_the_shortcut_for_unmoved_text_changes_nothing(
    text: str, direction: Literal["L", "R"] | None
) -> None:
    """Text taken for left-to-right would keep an order that the display algorithm changes."""
    assume(
        not {unicodedata.bidirectional(character) for character in text} & {"", "LRI", "RLI", "FSI", "PDI"}
    )
    assert display_order(text, direction) == get_display(text, base_dir=direction)


def test_brackets_are_mirrored() -> None:
    """The wrong one of two implementations would be in use."""
    assert display_order("نص (بين قوسين) عربي") == "يبرع (نيسوق نيب) صن"


@pytest.mark.parametrize(
    ("pipeline_dir", "line_dir", "expected"),
    [
        ("auto", None, "a םולש"),
        ("auto", "L", "םולש a"),
        ("auto", "R", "a םולש"),
        ("L", "R", "םולש a"),
        ("R", "L", "a םולש"),
    ],
)
def test_the_line_direction_counts_only_where_ours_is_auto(
    pipeline_dir: Literal["L", "R", "auto"], line_dir: Literal["L", "R"] | None, expected: str
) -> None:
    """A direction forced by the user would be overridden by a file, or a file's ignored."""
    assert TextPipeline(reorder=True, base_dir=pipeline_dir)("שלום a", line_dir) == expected


def test_steps_run_in_order() -> None:
    """Whitespace that normalisation creates would survive whitespace normalisation."""
    pipeline = TextPipeline(normalization="NFKC", normalize_whitespace=True, reorder=True)
    assert pipeline("\u00a0אב \u3000") == "בא"


def test_nothing_is_done_by_default() -> None:
    """A data set meant to be raw would be altered."""
    text = " \ufb01\u00a0שלום (a)\t"
    assert TextPipeline()(text) == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a\u200bb", "a\u200bb"),
        ("a\r\nb", "a  b"),
        ("a\u2003b\u3000", "a b"),
        ("a\x85b\u2028c", "a b c"),
        ("a\x1cb\x1f", "a\x1cb"),
        ("\ufeffa ", "\ufeffa"),
        ("\u200fa \u200f", "\u200fa \u200f"),
    ],
)
def test_whitespace_as_recorded_from_kraken(raw: str, expected: str) -> None:
    """Corner cases of what counts as whitespace would give other labels."""
    assert normalize_whitespace(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain  text ", "plain  text "),
        ("a\n\nb", "a b"),
        ("a\r\nb\r\n", "a b"),
        ("\n  a \n", "  a "),
        ("a\u2028b", "a b"),
        ("\n", ""),
        ("", ""),
    ],
)
def test_a_line_holds_no_line_break(raw: str, expected: str) -> None:
    """The alphabet would get a line break that no image shows; other whitespace must stay raw."""
    assert single_line(raw) == expected


@given(st.text())
def test_single_line_is_stable(text: str) -> None:
    """A text read and written again would change."""
    once = single_line(text)
    assert single_line(once) == once
    assert not set(once) & set("\n\r\x0b\x0c\x85\u2028\u2029")


@given(
    st.text(
        alphabet="ab אב 1(\U00011af9\U00011afa\U00010d50\U0010fffe\U000f0000\u2066\u2067\u2068\u2069\u0301─",
        max_size=20,
    ),
    ANY_DIRECTION,
)
def test_unknown_characters_neither_break_nor_vanish(text: str, direction: Literal["L", "R"] | None) -> None:
    """One isolate, or character newer than Python's Unicode tables, would end a run."""
    brackets = str.maketrans(")", "(")
    assert sorted(display_order(text, direction).translate(brackets)) == sorted(text)


def test_unknown_characters_of_right_to_left_blocks_run_right_to_left() -> None:
    """Scripts younger than Python would be learned in the wrong order."""
    letters = "\U00010d90\U00010d91"
    assert display_order(f"ab {letters}") == f"ab {letters[::-1]}"
