"""The codec: labels as kraken assigns them, text there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.model.codec import Codec

MANY_TO_MANY = {"a": [1], "b": [22], "c": [23, 24], "ab": [5], "ff": [6, 7]}


@pytest.mark.oracle
def test_codec_facts(oracle_dir: Path) -> None:
    """A model's labels would mean other characters in kraken."""
    facts = json.loads((oracle_dir / "codec.json").read_text())
    plain = Codec.from_alphabet(facts["from_string"]["charset"])
    assert plain.c2l == facts["from_string"]["c2l"]
    assert plain.max_label == facts["from_string"]["max_label"]
    for text, labels in facts["from_string"]["encode"].items():
        assert plain.encode(text.split(" (")[0]) == labels
    codec = Codec.from_mapping(facts["from_mapping"]["c2l"])
    for text, labels in facts["from_mapping"]["encode"].items():
        assert codec.encode(text) == labels
    for case in facts["from_mapping"]["decode"]:
        decoded = codec.decode([tuple(span) for span in case["labels"]])
        assert [list(span) for span in decoded] == [pytest.approx(span) for span in case["out"]]
    for name in ("not_prefix_free", "not_injective"):
        with pytest.raises(InputError, match="'a'"):
            Codec.from_mapping(facts[name]["c2l"])
    added = Codec.from_alphabet(facts["add_labels"]["base"]).add_labels(facts["add_labels"]["add"])
    assert added.c2l == facts["add_labels"]["c2l"]
    merged, removed = Codec.from_alphabet(facts["merge"]["base"]).merge(
        Codec.from_alphabet(facts["merge"]["other"])
    )
    assert merged.c2l == facts["merge"]["c2l"]
    assert sorted(removed) == facts["merge"]["removed_labels"]


@pytest.mark.parametrize(
    ("other", "merged", "removed"),
    [
        ({"a": [9], "z": [1]}, {"a": [1], "z": [2]}, {2, 3, 4, 5}),
        ({"c": [3, 4]}, {"c": [1, 2]}, {1, 2, 5}),
        ({"b": [7], "c": [1], "zz": [2, 3]}, {"b": [1], "c": [2, 3], "zz": [4, 5]}, {1, 5}),
        ({"q": [9], "r": [7], "a": [3]}, {"a": [1], "q": [3], "r": [2]}, {2, 3, 4, 5}),
    ],
)
def test_merge_of_compound_labels(
    other: dict[str, list[int]], merged: dict[str, list[int]], removed: set[int]
) -> None:
    """Rows of the output layer would be taken for the wrong characters (facts from kraken 7.1.1)."""
    base = Codec.from_mapping({"a": [1], "b": [2], "c": [3, 4], "d": [5]})
    codec, gone = base.merge(Codec.from_mapping(other))
    assert codec.c2l == merged
    assert gone == removed


def test_encoding_prefers_longest_and_skips_unknown() -> None:
    """Ligatures would be spelled out, or one odd character would stop the encoding."""
    codec = Codec.from_mapping(MANY_TO_MANY)
    assert codec.encode("aabxffab") == [1, 5, 6, 7, 5]
    assert codec.unencodable("fffx") == {"f", "x"}
    assert Codec.from_alphabet("ab").unencodable("abcc") == {"c"}
    assert Codec.from_mapping({"a": [1, 2], "b": [3]}).encode("xab") == [1, 2, 3]


def test_decoding_skips_labels_without_a_key() -> None:
    """A stray label would stop the decoding (facts from kraken 7.1.1)."""
    codec = Codec.from_mapping(MANY_TO_MANY)
    assert codec.decode([(23, 0, 1, 0.5), (1, 1, 2, 0.5)]) == [("a", 1, 2, 0.5)]
    assert codec.decode([(6, 0, 1, 0.5), (7, 4, 5, 0.7), (1, 8, 9, 0.3)]) == [
        ("f", 0, 5, pytest.approx(0.6)),
        ("f", 0, 5, pytest.approx(0.6)),
        ("a", 8, 9, 0.3),
    ]
    assert codec.decode_labels([9, 6, 7, 23, 1]) == "ffa"
    assert Codec.from_alphabet("ab").decode_labels([1, 9, 2]) == "ab"
    assert Codec.from_alphabet("").decode_labels([1]) == ""


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"a": [1, 2], "b": [1, 2, 3]}, ("'a'", "'b'", "[1, 2, 3]")),
        ({"a": [1], "b": [1]}, ("'a'", "'b'", "[1]")),
        ({"a": [5, 6, 7], "b": [2], "c": [5, 6]}, ("'a'", "[5, 6, 7]", "'c'", "[5, 6]")),
        ({"a": [0]}, ("'a'", "[0]", "blank")),
        ({"a": [2, 0]}, ("'a'", "[2, 0]", "blank")),
        ({"a": [1.0]}, ("'a'", "[1.0]", "integers")),
        ({"a": None}, ("'a'", "None")),
        ({"a": {"b": 1}}, ("'a'",)),
        ({1: [1]}, ("key 1 ", "in quotes")),
        ({True: [1]}, ("key True ", "in quotes")),
        ({"a": []}, ("'a'",)),
        ({"a": [-1]}, ("'a'",)),
        ({"a": ["x"]}, ("'a'",)),
        ({"a": "1"}, ("'a'",)),
        ({"a": [True]}, ("'a'",)),
        ({"": [1]}, ("''",)),
        ("aab", ("'a'", "more than once")),
        ([1, 2], ("list of strings",)),
    ],
)
def test_invalid_codecs_name_the_key(mapping: object, words: tuple[str, ...]) -> None:
    """A user would have to find the bad entry among hundreds."""
    with pytest.raises(InputError) as caught:
        Codec.from_mapping(mapping)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


def test_labels_without_a_key_are_known() -> None:
    """Nobody would notice that half of an output layer stands for nothing."""
    assert Codec.from_mapping({"a": [2], "b": [5, 6]}).unused == [1, 3, 4]
    assert Codec.from_alphabet("abc").unused == []
    assert Codec.from_alphabet("").unused == []


def test_codec_files_may_be_lists_or_have_bare_labels() -> None:
    """Codec files that kraken takes would be refused."""
    assert Codec.from_mapping({"a": 3, "b": [1]}).c2l == {"a": [3], "b": [1]}
    assert Codec.from_mapping("ba").c2l == Codec.from_mapping(["b", "a"]).c2l == {"a": [1], "b": [2]}


@given(st.text(min_size=1), st.text())
def test_roundtrip(alphabet: str, text: str) -> None:
    """Text would change on its way to labels and back."""
    codec = Codec.from_alphabet(alphabet)
    known = "".join(point for point in text if point in alphabet)
    assert codec.decode_labels(codec.encode(text)) == known
    assert codec.unencodable(text) == set(text) - set(alphabet)


@given(st.lists(st.text(min_size=1, max_size=3), unique=True), st.lists(st.text(min_size=1, max_size=3)))
def test_ligatures_roundtrip(keys: list[str], words: list[str]) -> None:
    """Keys of several code points would be found in the wrong place."""
    codec = Codec.from_alphabet(keys)
    text = "".join(words)
    if not codec.unencodable(text):
        assert codec.decode_labels(codec.encode(text)) == text
