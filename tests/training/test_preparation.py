"""What is decided before the first step: alphabet differences, codecs, texts as shown."""

from __future__ import annotations

from collections import Counter

import pytest

from distrib.errors import InputError
from distrib.training.preparation import alphabet_difference, describe_alphabet, load_codec, printable


def test_difference_of_alphabets_is_told_apart() -> None:
    assert alphabet_difference("abc", "bcd") == (["a"], ["d"])


def test_characters_without_a_shape_are_shown_by_code_point() -> None:
    assert [printable(character) for character in ("a", " ", "\u0301", "\ue000")] == [
        "a",
        "U+0020",
        "U+0301",
        "U+E000",
    ]


def test_long_alphabets_are_cut_and_counted() -> None:
    counts = Counter({chr(0x4E00 + number): 100 - number for number in range(70)})
    assert describe_alphabet(counts).endswith("and 10 more")


def test_an_empty_alphabet_is_refused() -> None:
    with pytest.raises(InputError, match="no text at all"):
        load_codec(None, Counter())


def test_a_codec_must_know_every_character() -> None:
    with pytest.raises(InputError, match="no label for c"):
        load_codec({"a": [1], "b": [2]}, Counter("abc"))


def test_labels_follow_code_points_without_a_codec() -> None:
    assert load_codec(None, Counter("cab")).c2l == {"a": [1], "b": [2], "c": [3]}
