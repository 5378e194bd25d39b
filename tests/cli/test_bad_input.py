"""Bad input as a user gives it: one sentence with a remedy, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from PIL import ImageFile

from distrib.cli.main import ketos
from distrib.errors import InputError
from distrib.ground_truth.sample import write_sample
from distrib.runtime.directory.run_directory import claim

SPEC = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx8]"
FEW = ["-B", "4", "-q", "fixed", "-N", "1", "-s", SPEC]
TRAIN = ["train", "-f", "binary", "-o", "run", *FEW]
TEST = ["test", "-f", "binary"]
COMPILE = ["compile", "-o", "out.arrow"]

Prepare = Callable[[Path, SimpleNamespace], None]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(ketos, ["--workers", "0", "-d", "cpu", *map(str, arguments)], prog_name="ketos")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Good input of every kind: ground truth, data sets of both line types, a run with its model."""
    root = tmp_path_factory.mktemp("world")
    sample, lines, pages, run = (root / name for name in ("sample", "lines.arrow", "pages.arrow", "run"))
    write_sample(sample, pairs=12, pages=2)
    invoke("compile", "-f", "path", "-o", lines, *sorted((sample / "lines").glob("*.png")))
    invoke("compile", "-o", pages, *sorted(sample.glob("*/0001.xml")))
    trained = invoke("train", "-f", "binary", "-o", run, *FEW, lines)
    assert trained.exit_code == 0, trained.output
    (weights,) = run.glob("best_*.safetensors")
    coreml = root / "model.mlmodel"
    invoke("convert", "-o", coreml, "--weights-format", "coreml", weights)
    return SimpleNamespace(
        sample=sample,
        lines=lines,
        pages=pages,
        run=run,
        weights=weights,
        coreml=coreml,
        last=run / "last.ckpt",
    )


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file with its content and every folder below ``folder``."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def assert_refused(folder: Path, arguments: list[str], *mentions: str) -> None:
    before = snapshot(folder)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert sentence.endswith((".", "?)"))  # the latter are click's own
    assert "Traceback" not in result.output
    assert "Unexpected" not in sentence
    for mention in mentions:
        assert mention in sentence
    assert snapshot(folder) == before, "files were left behind, changed or lost"


class Case(NamedTuple):
    """``arguments`` may hold ``{lines}`` and other names of the world."""

    name: str
    arguments: list[str]
    mentions: list[str]
    prepare: Prepare | None = None


def file(name: str, content: str | bytes) -> Prepare:
    data = content if isinstance(content, bytes) else content.encode()

    def prepare(folder: Path, world: SimpleNamespace) -> None:
        (folder / name).write_bytes(data)

    return prepare


def copied(kind: str, name: str = "") -> Prepare:
    """A good file of the world, as ``name``."""

    def prepare(folder: Path, world: SimpleNamespace) -> None:
        source = getattr(world, kind)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / (name or source.name))

    return prepare


def cut(kind: str, length: float, name: str) -> Prepare:
    """The beginning of a good file: bytes, or a share of it, or from the end."""

    def prepare(folder: Path, world: SimpleNamespace) -> None:
        data = getattr(world, kind).read_bytes()
        end = int(len(data) * length) if 0 < length < 1 else int(length)
        (folder / name).write_bytes(data[:end])

    return prepare


def page(kind: str, image: bytes | int | None = -1) -> Prepare:
    """A good page ``a.xml``; its image 0001.png missing (None), another (bytes) or cut to some bytes."""

    def prepare(folder: Path, world: SimpleNamespace) -> None:
        shutil.copy(world.sample / kind / "0001.xml", folder / "a.xml")
        data = (world.sample / kind / "0001.png").read_bytes()
        if image is not None:
            (folder / "0001.png").write_bytes(image if isinstance(image, bytes) else data[:image])

    return prepare


def pair(text: bytes = b"text", name: str = "l.gt.txt") -> Prepare:
    """A line image ``l.png`` with a text file."""

    def prepare(folder: Path, world: SimpleNamespace) -> None:
        shutil.copy(world.sample / "lines" / "0001.png", folder / "l.png")
        (folder / name).write_bytes(text)

    return prepare


def both(*steps: Prepare) -> Prepare:
    def prepare(folder: Path, world: SimpleNamespace) -> None:
        for step in steps:
            step(folder, world)

    return prepare


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HUGE_PNG = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0" * 100))
    + _chunk(b"IEND", b"")
)
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
BOMB = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]><alto>&l9;</alto>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e SYSTEM "secret">]><alto>&e;</alto>'
OUTSIDE_DTD = '<?xml version="1.0"?><!DOCTYPE alto SYSTEM "secret"><alto>&e;</alto>'
METS = '<mets:mets xmlns:mets="http://www.loc.gov/METS/"/>'

COMPILE_CASES = [
    Case("image missing", [*COMPILE, "a.xml"], ["a.xml", "0001.png does not exist"], page("alto", None)),
    Case("image garbage", [*COMPILE, "a.xml"], ["0001.png", "supported are PNG"], page("alto", b"garbage")),
    Case("image cut", [*COMPILE, "a.xml"], ["0001.png cannot be read"], page("page", 2000)),
    Case("image huge", [*COMPILE, "a.xml"], ["40000 × 40000", "scale it down"], page("alto", HUGE_PNG)),
    Case("billion laughs", [*COMPILE, "b.xml"], ["b.xml declares the entity"], file("b.xml", BOMB)),
    Case("external entity", [*COMPILE, "b.xml"], ["b.xml declares"], file("b.xml", OUTSIDE)),
    Case("external DTD", [*COMPILE, "b.xml"], ["b.xml uses an entity"], file("b.xml", OUTSIDE_DTD)),
    Case("METS", [*COMPILE, "b.xml"], ["b.xml is a METS file", "leave it out"], file("b.xml", METS)),
    Case("TEI", [*COMPILE, "b.xml"], ["b.xml is a TEI file"], file("b.xml", "<TEI/>")),
    Case("other XML", [*COMPILE, "b.xml"], ["its root is <a>"], file("b.xml", "<a/>")),
    Case("malformed", [*COMPILE, "b.xml"], ["b.xml", "line 2"], file("b.xml", "<alto>\n<b></alto>")),
    Case("empty file", [*COMPILE, "b.xml"], ["b.xml is empty"], file("b.xml", "")),
    Case("manifest empty", [*COMPILE, "-F", "m"], ["m lists no files"], file("m", " \r\n")),
    Case("manifest image", [*COMPILE, "-F", "l.png"], ["l.png is no list of paths", "-F"], pair()),
    Case("manifest XML", [*COMPILE, "-F", "a.xml"], ["a.xml is no list of paths"], page("alto")),
    Case("manifest missing", [*COMPILE, "-F", "m"], ["m does not exist"]),
    Case("manifest folder", [*COMPILE, "-F", "."], ["is a folder"]),
    Case("manifest prose", [*COMPILE, "-F", "m"], ["hello world does not exist"], file("m", "hello world")),
    Case("manifest one long line", [*COMPILE, "-F", "m"], ["cannot be read"], file("m", "x" * 5000)),
    Case("txt for gt.txt", [*COMPILE, "-f", "path", "l.png"], ["rename it to l.gt.txt"], pair(name="l.txt")),
    Case("not UTF-8", [*COMPILE, "-f", "path", "l.png"], ["l.gt.txt is not UTF-8"], pair(b"\xe4")),
    Case("all texts empty", [*COMPILE, "-f", "path", "l.png"], ["--keep-empty-lines"], pair(b"")),
    Case("alto on PAGE", [*COMPILE, "-f", "alto", "a.xml"], ["a.xml is PAGE", "-f page"], page("page")),
    Case("page on ALTO", [*COMPILE, "-f", "page", "a.xml"], ["a.xml is ALTO", "-f alto"], page("alto")),
    Case("path on XML", [*COMPILE, "-f", "path", "a.xml"], ["a.xml", "-f xml"], page("alto")),
    Case("xml on an image", [*COMPILE, "l.png"], ["l.png is not an XML file", "-f path"], pair()),
    Case("a folder", [*COMPILE, "."], ["is a folder", "*.xml"]),
    Case("glob without match", [*COMPILE, "*.nope"], ["*.nope matches no file"]),
    Case("no such file", [*COMPILE, "nope.xml"], ["nope.xml does not exist"]),
    Case("name too long", [*COMPILE, "n" * 300], ["does not exist"]),
    Case("NUL in a name", [*COMPILE, "a\0b"], ["NUL"]),
    Case("empty name", [*COMPILE, ""], ["is empty"]),
    Case("output empty", ["compile", "-o", "", "a.xml"], ["--output) is empty"], page("alto")),
    Case("output NUL", ["compile", "-o", "a\0b", "a.xml"], ["--output)", "NUL"], page("alto")),
    Case("output too long", ["compile", "-o", "x" * 300, "a.xml"], ["name too long"], page("alto")),
    Case("output nowhere", ["compile", "-o", "no/x", "a.xml"], ["folder no does not exist"], page("alto")),
    Case("output folder", ["compile", "-o", ".", "a.xml"], ["-o . is a folder"], page("alto")),
    Case("output unwritable", ["compile", "-o", "/proc/x", "a.xml"], ["/proc/x"], page("alto")),
    Case("output device", ["compile", "-o", "/dev/null", "a.xml"], ["/dev/null is a device"], page("alto")),
    Case("output a source", ["compile", "-o", "a.xml", "a.xml"], ["a.xml is one of"], page("alto")),
    Case("output its image", ["compile", "-o", "0001.png", "a.xml"], ["would be lost"], page("alto")),
    Case(
        "output its manifest",
        ["compile", "-o", "m", "-F", "m"],
        ["-o m", "would be lost"],
        both(page("alto"), file("m", "a.xml")),
    ),
    Case("report folder", [*COMPILE, "--report", ".", "a.xml"], ["--report . is a folder"], page("alto")),
    Case("report nowhere", [*COMPILE, "--report", "no/r", "a.xml"], ["--report no/r"], page("alto")),
    Case("report image", [*COMPILE, "--report", "0001.png", "a.xml"], ["would be lost"], page("alto")),
    Case("report output", [*COMPILE, "--report", "out.arrow", "a.xml"], ["choose two"], page("alto")),
]


def arrow(**metadata: Any) -> Prepare:
    """The line data set as ``c.arrow`` with other metadata, or with none."""

    def prepare(folder: Path, world: SimpleNamespace) -> None:
        table = pa.ipc.open_file(world.lines).read_all()
        stored = {**json.loads(table.schema.metadata[b"lines"]), **metadata}
        new = {**table.schema.metadata, b"lines": json.dumps(stored).encode()} if metadata else None
        table = table.replace_schema_metadata(new)
        with pa.OSFile(str(folder / "c.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as target:
            target.write_table(table)

    return prepare


def no_text(folder: Path, world: SimpleNamespace) -> None:
    """A data set ``c.arrow`` of lines that were kept empty, and the manifest ``m`` of it."""
    pair(b"")(folder, world)
    output = folder / "c.arrow"
    invoke("compile", "--keep-empty-lines", "-f", "path", "-o", output, folder / "l.png")
    (folder / "m").write_text(str(output), encoding="utf-8")


def weights(task: str, key: str = "kraken_meta") -> Prepare:
    """A weights file ``w`` that is whole and not ours to use."""

    def prepare(folder: Path, world: SimpleNamespace) -> None:
        entry = {"_tasks": [task], "_model": "TorchVGSLModel", "vgsl": "[1,16,0,1 Cr3,3,8]"}
        tensors = {"id.nn.C_0.co.weight": torch.zeros(8, 1, 3, 3)}
        safetensors.torch.save_file(tensors, folder / "w", metadata={key: json.dumps({"id": entry})})

    return prepare


def checkpoint(content: Mapping[str, Any]) -> Prepare:
    return lambda folder, world: torch.save(content, folder / "c.ckpt")


def spec(text: str) -> list[str]:
    return [*TRAIN, "-s", text, "{lines}"]


AMBIGUOUS = "codec: {a: [1], b: [1, 2]}"
HOLLOW = {"common": {"ketos": {"model": {"spec": SPEC}}}, "groups": [], "tensors": {}}
PARALLEL = "[1,16,0,1 (Cr3,3,8 Cr3,3,4) S1(1x0)1,3 Lbx8]"

TRAIN_CASES = [
    *(
        Case(
            f"data cut to {end:g}",
            [*TRAIN, "c.arrow"],
            ["c.arrow", "Arrow file" if end in (0, 3) else "cut"],
            step,
        )
        for end in (0, 3, 8, 100, 0.5, -300, -1)
        for step in [cut("lines", end, "c.arrow")]
    ),
    Case("data no Arrow", [*TRAIN, "c"], ["c is not an Arrow file", "ketos compile"], file("c", "hello")),
    Case("data without metadata", [*TRAIN, "c.arrow"], ["c.arrow", "ketos compile"], arrow()),
    Case(
        "segmentation data", [*TRAIN, "c.arrow"], ["kraken_seg"], arrow(type="kraken_segmentation_baseline")
    ),
    Case("data set as XML", ["train", "{lines}"], ["lines.arrow", "-f binary"]),
    Case("data set as path", ["train", "-f", "path", "{lines}"], ["lines.arrow", "-f binary"]),
    Case("empty alphabet", [*TRAIN, "-e", "m", "c.arrow"], ["no text"], no_text),
    Case("empty validation", [*TRAIN, "-e", "m", "{lines}"], ["no text", "-e"], no_text),
    Case("both line types", [*TRAIN, "{lines}", "{pages}"], ["pages.arrow", "lines.arrow", "--force-type"]),
    Case("spec no list", spec("hello"), ["`hello`", "brackets"]),
    Case("spec block unknown", spec("[1,16,0,1 Cr3,3,8 Xy3]"), ["block 2 `Xy3`", "known are"]),
    Case("spec block numbers", spec("[1,16,0,1 Cr3,3 Lbx8]"), ["block 1 `Cr3,3`", "write it as"]),
    Case("spec brackets", spec("[1,16,0,1 Cr3,3,8 Lbx8"), ["balanced brackets"]),
    Case("spec channels", spec("[1,16,0,2 Cr3,3,8 S1(1x0)1,3 Lbx8]"), ["2 channels", "input block"]),
    Case("spec no channels", spec("[1,16,0,0 Cr3,3,8 S1(1x0)1,3 Lbx8]"), ["input block `1,16,0,0`"]),
    Case("spec height", spec("[1,16,0,1 Cr3,3,8 Lbx8]"), ["16 pixels high", "S1(1x0)1,3"]),
    Case("spec with output", spec("[1,16,0,1 S1(1x0)1,3 O1c9]"), ["block 2 `O1c9`"]),
    Case("spec too large", spec("[1,16,0,1 S1(1x0)1,3 Lbx999999]"), ["--spec", "make it smaller"]),
    Case(
        "spec not for CoreML",
        [*TRAIN, "-s", PARALLEL, "--weights-format", "coreml", "{lines}"],
        ["safetensors"],
    ),
    Case(
        "codec ambiguous", [*TRAIN, "-c", "c", "{lines}"], ["c: ", "'b'"], file("c", '{"a": 1, "b": [1, 2]}')
    ),
    Case(
        "codec in YAML", ["--config", "e", *TRAIN, "{lines}"], ["'b'"], file("e", f"train: {{{AMBIGUOUS}}}")
    ),
    Case("codec missing", [*TRAIN, "-c", "c.json", "{lines}"], ["c.json"]),
    Case("codec no JSON", [*TRAIN, "-c", "c", "{lines}"], ["c: the codec is not JSON"], file("c", '{"a"')),
    Case("codec too deep", [*TRAIN, "-c", "c", "{lines}"], ["c: the codec"], file("c", "[" * 100_000)),
    Case("codec a list", [*TRAIN, "-c", "c", "{lines}"], ["c: a codec is a JSON object"], file("c", "[]")),
    Case("codec lacks", [*TRAIN, "-c", "c", "{lines}"], ["--codec has no label"], file("c", '{"a": 1}')),
    Case("codec huge label", [*TRAIN, "-c", "c", "{lines}"], ["c: ", "number"], file("c", '{"a": 99999999}')),
    Case(
        "load segmentation", [*TRAIN, "-i", "w", "{lines}"], ["w: ", "segmentation"], weights("segmentation")
    ),
    Case("load not kraken's", [*TRAIN, "-i", "w", "{lines}"], ["w: "], weights("recognition", "other")),
    Case("load unfit", [*TRAIN, "-i", "w", "{lines}"], ["w: ", "do not fit"], weights("recognition")),
    Case("load garbage", [*TRAIN, "-i", "w", "{lines}"], ["w: neither"], file("w", "garbage" * 99)),
    Case(
        "load zip", [*TRAIN, "-i", "w", "{lines}"], ["w: not a checkpoint"], file("w", b"PK\3\4" + b"x" * 99)
    ),
    Case("load missing", [*TRAIN, "-i", "w", "{lines}"], ["w: no such"]),
    Case(
        "resume garbage", [*TRAIN, "--resume", "w", "{lines}"], ["w: not a checkpoint"], file("w", "x" * 99)
    ),
    Case("resume cut", [*TRAIN, "--resume", "c", "{lines}"], ["c: not a checkpoint"], cut("last", 0.5, "c")),
    Case("resume foreign", [*TRAIN, "--resume", "c.ckpt", "{lines}"], ["c.ckpt: not"], checkpoint({"a": 1})),
    Case("resume hollow", [*TRAIN, "--resume", "c.ckpt", "{lines}"], ["damaged"], checkpoint(HOLLOW)),
    Case("resume missing", [*TRAIN, "--resume", "w", "{lines}"], ["w: no such checkpoint"]),
    Case("resume empty folder", [*TRAIN, "--resume", ".", "{lines}"], ["no whole checkpoint"]),
    Case("output file", [*TRAIN, "-o", "f", "{lines}"], ["f: cannot be made"], file("f", "x")),
    Case("output below a file", [*TRAIN, "-o", "f/g", "{lines}"], ["f/g: cannot be made"], file("f", "x")),
    Case("output too long", [*TRAIN, "-o", "r" * 300, "{lines}"], ["name too long"]),
    Case("output another run", [*TRAIN, "-o", "{run}", "{lines}"], ["--resume", "-o"]),
    Case("nothing usable", ["train", "-o", "x/y/z", "a.xml"], ["a.xml"], page("alto", None)),
    Case("partition 1", [*TRAIN, "-p", "1.0", "{lines}"], ["--partition 1", "-e"]),
    Case("fixed without epochs", ["train", "-f", "binary", "-q", "fixed", "{lines}"], ["--epochs"]),
    Case("learning rate", [*TRAIN, "-r", "inf", "{lines}"], ["--lrate", "must be a number"]),
    Case("unknown option", [*TRAIN, "--lrat", "1", "{lines}"], ["--lrat", "--lrate"]),
]

TEST_CASES = [
    Case("no such model", [*TEST, "-m", "nope", "{lines}"], ["nope: no such"]),
    Case(
        "model of another task",
        [*TEST, "-m", "w", "{lines}"],
        ["w: ", "segmentation"],
        weights("segmentation"),
    ),
    *(
        Case(f"model cut to {end:g}", [*TEST, "-m", "w", "{lines}"], ["w: "], cut("weights", end, "w"))
        for end in (0, 5, 100, 0.5, -1)
    ),
    *(
        Case(f"CoreML cut to {end:g}", [*TEST, "-m", "w", "{lines}"], ["w: "], cut("coreml", end, "w"))
        for end in (1, 2, 0.5, -1)
    ),
    Case("data missing", [*TEST, "-m", "{weights}", "no.arrow"], ["no.arrow does not exist"]),
    Case("data none", [*TEST, "-m", "{weights}"], ["No test data given", "-e"]),
    Case("json folder", [*TEST, "-m", "{weights}", "--json", ".", "{lines}"], ["--json . is a folder"]),
    Case("json nowhere", [*TEST, "-m", "{weights}", "--json", "no/r", "{lines}"], ["--json no/r"]),
    Case(
        "json a data set",
        [*TEST, "-m", "{weights}", "--json", "l", "l"],
        ["would be lost"],
        copied("lines", "l"),
    ),
]

CONVERT_CASES = [
    Case("nothing", ["convert"], ["No checkpoint or weights file given"]),
    Case("missing", ["convert", "no.ckpt"], ["no.ckpt: no such"]),
    Case("garbage", ["convert", "g"], ["g: neither"], file("g", "garbage")),
    Case("hollow", ["convert", "c.ckpt"], ["c.ckpt: ", "damaged"], checkpoint(HOLLOW)),
    Case("output nowhere", ["convert", "-o", "no/w", "{weights}"], ["folder no does not exist"]),
    Case("output folder", ["convert", "-o", ".", "{weights}"], ["-o . is a folder"]),
    Case(
        "output input", ["convert", "-o", "w", "w"], ["-o w is the file to convert"], copied("weights", "w")
    ),
    Case("output too long", ["convert", "-o", "o" * 300, "{weights}"], ["name too long"]),
    Case("several", ["convert", "-o", "o", "{weights}", "{last}"], ["2 files given", "one at a time"]),
]

EXPERIMENTS = {
    "unknown key": ("train:\n  lrat: 3\n", "`train.lrat` is not an option (did you mean `lrate`?)"),
    "unknown section": ("trian:\n  lrate: 3\n", "(did you mean `train`?)"),
    "number as key": ("train:\n  1: 2\n", "`train.1` is not an option"),
    "text for a number": ("train:\n  lrate: fast\n", "must be a number, not 'fast'"),
    "list for a number": ("train:\n  epochs: [1]\n", "must be a whole number, not [1]"),
    "number for a list": ("train:\n  training_data: 3\n", "must be a list, not 3"),
    "text for a switch": ("train:\n  augment: maybe\n", "must be true or false"),
    "NUL in a path": ('train:\n  checkpoint_path: "a\\0b"\n', "NUL"),
    "list for a section": ("train: [1]\n", "section `train` must hold options"),
    "a list": ("- a\n", "as `name: value`"),
    "a word": ("hello\n", "as `name: value`"),
    "key twice": ("train:\n  lrate: 1\n  lrate: 2\n", "line 3: `lrate` is given a second time"),
    "section twice": ("train:\n  lrate: 1\ntrain:\n  lag: 2\n", "line 3: `train` is given a second time"),
    "unsafe tag": ('train: !!python/object/apply:os.system ["touch pwned"]\n', "line 1: not a YAML"),
    "tab": ("train:\n\tlrate: 1\n", "line 2: not a YAML"),
    "not UTF-8": ("train:\udcff\n", "not text in UTF-8"),
    "an image": ("\x89PNG\0\0", "not text in UTF-8"),
    "nested": ("[" * 5000, "nested too deeply"),
    "no such day": ("train:\n  spec: 2001-99-01\n", "not a YAML"),
    "very long number": (f"train:\n  epochs: {'9' * 5000}\n", "not a YAML"),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{command}-{case.name}")
        for command, cases in {
            "compile": COMPILE_CASES,
            "train": TRAIN_CASES,
            "test": TEST_CASES,
            "convert": CONVERT_CASES,
        }.items()
        for case in cases
    ],
)
def test_bad_input_is_one_sentence_and_leaves_everything_as_it_was(
    case: Case, world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if case.prepare is not None:
        case.prepare(tmp_path, world)
    known = {f"{{{name}}}": str(path) for name, path in vars(world).items()}
    assert_refused(tmp_path, [known.get(each, each) for each in case.arguments], *case.mentions)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_bad_experiment_file_is_named_with_what_is_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, mention = EXPERIMENTS[name]
    Path("e.yml").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert_refused(tmp_path, ["--config", "e.yml", "train", "x.xml"], "Error: e.yml", mention)


def test_an_image_over_the_limit_is_never_decoded(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header of a few bytes must not set aside gigabytes."""
    page("alto", HUGE_PNG)(tmp_path, world)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    assert "40000" in invoke("compile", "-o", tmp_path / "o", tmp_path / "a.xml").stderr


def test_a_file_named_by_an_entity_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret", encoding="utf-8")
    for document in (OUTSIDE, OUTSIDE_DTD):
        (tmp_path / "b.xml").write_text(document, encoding="utf-8")
        assert "s3cret" not in invoke("compile", "-o", tmp_path / "o", tmp_path / "b.xml").output


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """A name from a manifest could clear the screen or fake a second message."""
    sentence = invoke("compile", "-o", tmp_path / "o", "a\x1b2J\nError: b").stderr
    assert "a\\x1b2J\\nError: b does not exist" in sentence


def test_the_process_itself_exits_2_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distrib", "compile", os.fsdecode(b"\xff.xml")]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert not done.stdout


def test_a_test_set_of_the_other_line_type_is_evaluated_with_a_warning(world: SimpleNamespace) -> None:
    """As kraken does: the figures may be wanted, but not unknowingly."""
    done = invoke(*TEST, "-m", world.weights, world.pages)
    assert done.exit_code == 0
    assert "Warning: " in done.stderr
    assert "bbox" in done.stderr
    assert not invoke(*TEST, "-m", world.weights, world.lines).stderr


def test_what_a_run_has_saved_stays_when_its_input_fails_later(tmp_path: Path) -> None:
    """Days of training must not be deleted because the export at the end is refused."""
    run = tmp_path / "run"

    def fail_late() -> None:
        with claim(run, resuming=False, environ={}):
            (run / "checkpoint_00-0.5000.ckpt").write_bytes(b"precious")
            raise InputError("too late")

    with pytest.raises(InputError):
        fail_late()
    assert (run / "checkpoint_00-0.5000.ckpt").read_bytes() == b"precious"


NAMES = [
    "with space",
    "b[1]rackets",
    "st*r",
    "qu?stion",
    "-dash",
    "Ünïcödé-北京",
    "d.o.t.s",
    "'quotes\"",
    "#1 %20",
    "é" * 100,
]


def odd_pairs(folder: Path, world: SimpleNamespace) -> list[str]:
    names = []
    for number, name in enumerate(NAMES, start=1):
        source = world.sample / "lines" / f"{number:04}.png"
        shutil.copy(source, folder / f"{name}.png")
        shutil.copy(source.with_suffix(".gt.txt"), folder / f"{name}.gt.txt")
        names.append(f"{name}.png")
    return names


def manifests() -> Iterator[tuple[str, Callable[[list[str]], bytes]]]:
    yield "plain", lambda names: "\n".join(names).encode()
    yield "CRLF", lambda names: "\r\n".join([*names, ""]).encode()
    yield "BOM", lambda names: "\n".join(names).encode("utf-8-sig")


@pytest.mark.parametrize("encoded", [pytest.param(encoded, id=name) for name, encoded in manifests()])
def test_odd_names_work_in_manifests_of_every_editor(
    encoded: Callable[[list[str]], bytes],
    world: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list [1].lst").write_bytes(encoded(odd_pairs(tmp_path, world)))
    done = invoke("train", "-f", "path", "-o", "my run [2]", *FEW, "-t", "list [1].lst", "--split-by", "line")
    assert done.exit_code == 0, done.output
    assert f"{len(NAMES)} lines of {len(NAMES)} files" in done.stdout
    assert list(Path("my run [2]").glob("best_*.safetensors"))


def test_odd_names_work_as_arguments(
    world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("compile", "-f", "path", "-o", "ö [1].arrow", "--", *odd_pairs(tmp_path, world))
    assert f"{len(NAMES)} lines of {len(NAMES)} files" in done.stdout


@pytest.mark.parametrize("kind", ["last", "weights", "coreml"])
def test_damaged_models_are_refused_or_read_but_never_crash(
    kind: str, world: SimpleNamespace, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Half of the files have bytes changed, mostly near the beginning; half are cut."""
    data, random = getattr(world, kind).read_bytes(), Random(kind)
    for number in range(60):
        damaged = bytearray(data[: random.randrange(len(data))] if number % 2 else data)
        for _ in range(0 if number % 2 else 30):
            damaged[random.randrange(3000 if number % 4 else len(damaged))] = random.randrange(256)
        (tmp_path / "m").write_bytes(damaged)
        done = invoke("convert", "-o", tmp_path / "out", tmp_path / "m")
        assert done.exit_code in (0, 2), done.output
        assert done.exit_code == 0 or f"{tmp_path / 'm'}: " in done.stderr
    assert not recwarn.list


@pytest.mark.real
def test_real_odd_files_give_what_can_be_used_or_a_sentence(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "odd-xml").rglob("*.xml"))
    assert files
    usable = 0
    for source in files:
        output = tmp_path / "one.arrow"
        done = invoke("compile", "-o", output, source)
        assert done.exit_code == (0 if output.exists() else 2), done.output
        assert output.exists() or (done.stderr.startswith("Error: ") and source.name in done.stderr)
        usable += output.exists()
        output.unlink(missing_ok=True)
    assert usable
    done = invoke("compile", "-o", tmp_path / "all.arrow", "--report", tmp_path / "left-out.jsonl", *files)
    assert done.exit_code == 0
    assert f"of {usable} files" in done.stdout
    assert (tmp_path / "left-out.jsonl").stat().st_size
