"""`ketos inspect`: what it prints, as text and as JSON, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from distrib.cli.inspection import render_alphabet, visible
from distrib.cli.main import ketos
from distrib.shards.compiling.arrow_writer import ArrowWriter, PackedLine
from distrib.shards.png import encode_png

SPEC = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx8]"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(ketos, ["--workers", "0", *map(str, arguments)], prog_name="ketos")


def line(number: int, text: str, **changes: Any) -> PackedLine:
    width = 40 + 30 * number
    pixels = np.full((16, width), 255, dtype=np.uint8)
    pixels[4:12:2, 3:-3] = number
    values = {
        "text": text,
        "png": encode_png(Image.fromarray(pixels)),
        "source": "page.xml",
        "line_id": f"l{number}",
        "width": width,
        "height": 16,
        "mode": "L",
    }
    return PackedLine(**(values | changes))


def write(path: Path, lines: Sequence[PackedLine]) -> Path:
    with ArrowWriter(path, line_type="baselines") as writer:
        for each in lines:
            writer.add(each)
    return path


LINES = [
    line(0, "x" * 30, split="train"),
    line(1, "e\u0301 \u05d0\t", languages=("fra",)),
    line(2, "\u6f22 ee", split="test"),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.arrow", LINES)


def test_the_text_says_what_there_is(data: Path) -> None:
    result = invoke("inspect", "-s", SPEC, "--pad", "0", data)
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert text.splitlines()[0] == str(data)
    for expected in [
        "3 of 39 characters",
        "line type     baselines",
        "images        grey, as cut",
        "splits        none 1, train 1, test 1",
        "languages     fra 1",
        "duplicates    none",
        "pixels        least  5 %  25 %  median  75 %  95 %  most",
        "width            40   40    40      70   100   100   100",
        "                80 to  99  0",
        "1 line with fewer output steps than the characters need",
        "line 0 (page.xml l0): 20 for 59",
        "alphabet: 7 different characters",
        "30  U+0078    x   LATIN SMALL LETTER X",
        " 1  U+0301    \u25cc\u0301   COMBINING ACUTE ACCENT",
        " 1  U+6F22    \u6f22  CJK UNIFIED IDEOGRAPH-6F22",
        " 1  U+0009        control character",
    ]:
        assert expected in text, text
    assert "\x1b" not in text
    assert "\t" not in text


def test_json_holds_the_same(data: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.arrow", LINES[1:])
    result = invoke("inspect", "--json", "-s", SPEC, "--pad", "0", data, other)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    first, second = document["datasets"]
    assert first["name"] == str(data)
    assert (first["lines"], second["lines"], document["all"]["lines"]) == (3, 2, 5)
    assert document["all"]["duplicates"] == {"key": 2, "image_and_text": 2}
    assert first["splits"] == {"none": 1, "train": 1, "validation": 0, "test": 1}
    assert first["widths"]["percentiles"]["50"] == 70
    assert first["normalized_height"] == 0
    assert first["too_narrow"]["lines"] == 1
    assert first["too_narrow"]["examples"][0]["line_id"] == "l0"
    assert {"character": "x", "code_point": "U+0078", "name": "LATIN SMALL LETTER X", "count": 30} in first[
        "alphabet"
    ]
    assert document["damaged"] is None


def test_several_data_sets_end_with_all_of_them(data: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.arrow", LINES[2:])
    result = invoke("inspect", data, other)
    assert "\nall\n  lines         4 of 43 characters" in result.stdout
    assert "LATIN SMALL LETTER X  (in 1 of 2 data sets)" in result.stdout


def test_verify_ends_with_0_where_all_is_well(data: Path) -> None:
    result = invoke("inspect", "--verify", data)
    assert result.exit_code == 0
    assert "verified: every shard" in result.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_verify_names_what_is_damaged_and_ends_with_1(data: Path, as_json: bool) -> None:
    content = bytearray(data.read_bytes())
    content[content.index(LINES[1].png) + 50] ^= 0xFF
    data.write_bytes(content)
    result = invoke("inspect", "--verify", *(["--json"] if as_json else []), data)
    assert result.exit_code == 1
    assert "1 damaged line" in result.stderr
    assert "Traceback" not in result.output
    if as_json:
        (damage,) = json.loads(result.stdout)["damaged"]
        assert (damage["shard"], damage["line"], damage["source"]) == (str(data), 1, "page.xml")
    else:
        assert f"{data} line 1 (page.xml l1): its image does not match its checksum" in result.stdout


def test_verify_in_several_processes_finds_the_same(data: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.arrow", LINES)
    other.write_bytes(other.read_bytes().replace(LINES[2].png, LINES[2].png[::-1]))
    arguments = ["inspect", "--verify", "--json", str(data), str(other)]
    runs = [CliRunner().invoke(ketos, ["--workers", workers, *arguments]) for workers in ("0", "2")]
    assert [run.exit_code for run in runs] == [1, 1]
    assert runs[0].stdout == runs[1].stdout


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["inspect"], "No data set given"),
        (["inspect", "missing.arrow"], "missing.arrow"),
        (["inspect", "empty"], "empty"),
        (["inspect", "cut.arrow"], "cut.arrow"),
        (["inspect", "text.arrow"], "text.arrow"),
        (["inspect", "-s", "[1,16,0,1 Nonsense]", "data.arrow"], "Nonsense"),
        (["inspect", "-s", "[1,16,0,1 Cr3,3,8]", "data.arrow"], "S1(1x0)1,3"),
        (["inspect", "-s", "[1,16,0,2 Cr3,3,8 S1(1x0)1,3]", "data.arrow"], "2 channels"),
        (["inspect", "--pad", "-1", "data.arrow"], "--pad"),
    ],
)
def test_bad_input_is_a_sentence(
    data: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], mentions: str
) -> None:
    monkeypatch.chdir(data.parent)
    Path("empty").mkdir()
    Path("text.arrow").write_text("hello")
    write(Path("cut.arrow"), LINES)
    cut(Path("cut.arrow"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert mentions in sentence
    assert "Traceback" not in result.output


def test_names_from_outside_cannot_command_the_terminal(tmp_path: Path) -> None:
    lines = [line(0, "x" * 500, source="a\x1b[31m.xml", line_id="b\nc")]
    result = invoke("inspect", write(tmp_path / "data.arrow", lines))
    assert "\x1b" not in result.stdout
    assert r"a\x1b[31m.xml b\nc" in result.stdout
    assert visible("a\u202e\u2028b") == r"a\u202e\u2028b"


def test_the_alphabet_goes_by_number_of_occurrences() -> None:
    facts: Any = SimpleNamespace(alphabet={"a": 1, "b": 2000, "c": 1})
    shown = [row.split()[:2] for row in render_alphabet(facts, [facts]).splitlines()[1:]]
    assert shown == [["2,000", "U+0062"], ["1", "U+0061"], ["1", "U+0063"]]


def test_a_file_name_is_shown_whole(tmp_path: Path) -> None:
    """What is cut off addresses, for the secrets in it, is part of a name."""
    result = invoke("inspect", write(tmp_path / "why?.arrow", LINES))
    assert result.stdout.startswith(str(tmp_path / "why?.arrow\n"))
