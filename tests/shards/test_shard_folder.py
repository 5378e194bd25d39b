"""A folder of shards holds every line once, in order, found by its index, whoever wrote which part of it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distrib.errors import InputError
from distrib.ground_truth.records import LineImage, Skip, SkipReason
from distrib.shards.arrow import SPLIT_CODES
from distrib.shards.compiling.compile import CompileJob, CompileProgress, CompileSummary, compile_dataset
from distrib.shards.compiling.compile_shards import compile_shards
from distrib.shards.index import open_index
from distrib.shards.manifest import read_manifest
from distrib.shards.png import decode_png

from .conftest import ReadBack

ROOT = Path(__file__).resolve().parents[2]
Pairs = Callable[[int], list[Path]]

FORMATS = ("arrow", "webdataset")
JSON_FIELDS = {
    *(
        "source",
        "line_id",
        "key",
        "page_key",
        "languages",
        "split",
        "base_dir",
        "line_type",
        "legacy_polygons",
    ),
    *("width", "height", "columns", "image_crc", "im_mode", "source_mode", "normalized_height"),
}


def read_lines(source: Path, **_: object) -> Iterator[LineImage | Skip]:
    """Every line of a text file is an image as wide as it is long; those that begin with ! are left out."""
    for number, text in enumerate(source.read_text(encoding="utf-8").splitlines()):
        if text.startswith("!"):
            reason = SkipReason.NO_BASELINE
            yield Skip(source=source, line_id=f"l{number}", reason=reason, detail=f"{source}: {text}")
            continue
        pixels = np.random.Generator(np.random.Philox(zlib.crc32(text.encode()))).integers(
            0, 256, (12, 20 + len(text), 3), dtype=np.uint8
        )
        yield LineImage(
            source=source,
            line_id=f"l{number}",
            text=text,
            image=Image.fromarray(pixels),
            languages=("deu", "lat") if number % 3 == 0 else (),
            split=("train", "validation", None)[number % 3],  # type: ignore[arg-type]
            base_dir="R" if number % 5 == 4 else None,
        )


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    """Fifteen pages of up to six lines; some have none, and some lines are left out."""
    folder = tmp_path / "pages"
    folder.mkdir()
    paths = []
    for number in range(15):
        path = folder / f"{number:02d}.xml"
        lines = [f"page {number} line {line}" for line in range(number * 7 % 6 + (number != 14))]
        if number % 4 == 3:
            lines.insert(1, f"!{number}")
        path.write_text("\n".join(lines) if number else "", encoding="utf-8")
        paths.append(path)
    return paths


def job(sources: list[Path], output: Path, **changes: Any) -> CompileJob:
    values = {"shard_format": "arrow", "shard_size": 4000, "workers": 0, "height": 16, "normalized": True}
    return CompileJob(**{"sources": sources, "output": output, **values, **changes})


def compiled(sources: list[Path], output: Path, **changes: Any) -> CompileSummary:
    summary = compile_shards(job(sources, output, **changes), read=read_lines)
    assert summary is not None
    return summary


def together(size: int, task: CompileJob, **options: Any) -> list[Any]:
    """What each of ``size`` processes (here: threads) returned."""
    with ThreadPoolExecutor(size) as threads:
        ranks = [
            threads.submit(compile_shards, task, rank=rank, world_size=size, read=read_lines, **options)
            for rank in range(size)
        ]
        return [rank.result() for rank in ranks]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts(folder: Path) -> list[str]:
    return [text for _, chunk, _ in open_index(folder / "index.arrow").text_chunks() for text in chunk]


def expected_texts(sources: list[Path]) -> list[str]:
    lines = [line for source in sources for line in source.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if not line.startswith("!")]


@pytest.mark.parametrize("shard_format", FORMATS)
@pytest.mark.parametrize("normalized", [True, False])
def test_every_line_is_found_by_its_index(
    tmp_path: Path, pages: list[Path], shard_format: str, normalized: bool
) -> None:
    """A reader takes bytes by range and trusts nothing else: a wrong offset is a wrong image for a text."""
    out = tmp_path / "ds"
    summary = compiled(pages, out, shard_format=shard_format, normalized=normalized)
    manifest = read_manifest(out / "dataset.json")
    index = open_index(out / "index.arrow")
    found = 0
    for source in pages:
        for line in read_lines(source):
            if isinstance(line, Skip):
                continue
            entry = index.entry(found)
            shard = (out / manifest.shards[entry.shard].name).read_bytes()
            png = shard[entry.offset : entry.offset + entry.size]
            assert zlib.crc32(png) == entry.crc
            image = decode_png(png)
            assert (entry.width, entry.height) == image.size
            assert (entry.text, entry.source, entry.line_id) == (line.text, source.name, line.line_id)
            assert (entry.base_dir, entry.split) == (line.base_dir, SPLIT_CODES.get(line.split or "", 0))  # type: ignore[call-overload]
            assert entry.columns == int(line.image.width * 16 / 12)
            assert (image.mode, image.height) == (("L", 16) if normalized else ("RGB", 12))
            found += 1
    assert len(index) == found == manifest.lines == summary.lines
    assert (manifest.im_mode, manifest.source_mode) == (("L" if normalized else "RGB"), "RGB")
    assert (manifest.normalized, manifest.height) == (normalized, 16)


@pytest.mark.parametrize("shard_format", FORMATS)
def test_the_manifest_tells_the_truth(tmp_path: Path, pages: list[Path], shard_format: str) -> None:
    out = tmp_path / "ds"
    summary = compiled(pages, out, shard_format=shard_format)
    manifest = read_manifest(out / "dataset.json")
    everything = "".join(expected_texts(pages))
    assert manifest.characters == len(everything) == summary.characters
    assert dict(manifest.alphabet) == {c: everything.count(c) for c in sorted(set(everything))}
    assert sum(manifest.splits.values()) == manifest.lines
    assert sum(manifest.width_histogram.counts) == manifest.lines
    assert manifest.languages == {"deu": manifest.splits["train"], "lat": manifest.splits["train"]}
    assert len(manifest.shards) == summary.shards > 3
    for shard in manifest.shards:
        path = out / shard.name
        assert path.stat().st_size == shard.bytes
        if shard_format == "arrow":
            assert len(ReadBack(path)) == shard.lines
    assert sorted(contents(out)) == sorted(
        ["dataset.json", "index.arrow", "sources.jsonl", *(shard.name for shard in manifest.shards)]
    )
    sources = [json.loads(line) for line in (out / "sources.jsonl").read_text().splitlines()]
    assert [Path(source["source"]) for source in sources] == pages
    starts = np.cumsum([0, *(source["lines"] for source in sources)])
    assert [source["first"] for source in sources] == list(starts[:-1])
    assert starts[-1] == manifest.lines
    assert manifest.sources.count == len(pages)


@pytest.mark.parametrize("shard_format", FORMATS)
def test_shards_are_closed_at_their_size(tmp_path: Path, pages: list[Path], shard_format: str) -> None:
    """Without bound a shard of a large collection fits no cache; cut finer it is many small files."""
    small, large = tmp_path / "small", tmp_path / "large"
    compiled(pages, small, shard_format=shard_format, shard_size=1)
    manifest = read_manifest(small / "dataset.json")
    assert [shard.lines for shard in manifest.shards] == [1] * manifest.lines
    compiled(pages, large, shard_format=shard_format, shard_size=1 << 30)
    assert len(read_manifest(large / "dataset.json").shards) == 1
    assert texts(small) == texts(large) == expected_texts(pages)


@pytest.mark.parametrize("shard_format", FORMATS)
def test_processes_together_give_the_same_order(tmp_path: Path, pages: list[Path], shard_format: str) -> None:
    """More ranks than sources leaves some with nothing to do, which must not keep the others waiting."""
    reports = []
    for size in (1, 2, 5, 19):
        out, report = tmp_path / f"{size}", tmp_path / f"{size}.jsonl"
        task = job(pages, out, shard_format=shard_format, report=report)
        summary, *others = together(size, task)
        assert others == [None] * (size - 1)
        assert texts(out) == expected_texts(pages)
        assert summary.lines == len(texts(out))
        assert (summary.sources, summary.skipped) == (15, {SkipReason.NO_BASELINE: 3})
        reports.append(report.read_bytes())
    assert len(set(reports)) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_one_process_gives_the_same_bytes_with_any_number_of_workers(
    tmp_path: Path, line_pairs: Pairs
) -> None:
    sources = line_pairs(40)
    sources[7].write_bytes(b"no image")
    outputs = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}"
        compile_shards(job(sources, out, workers=workers, format_type="path", shard_size=9000))
        outputs.append(contents(out))
    assert outputs[0] == outputs[1]
    assert len(texts(tmp_path / "2")) == 39


def test_shards_hold_what_the_single_file_holds(tmp_path: Path, pages: list[Path]) -> None:
    task = job(pages, tmp_path / "one.arrow", shard_format=None, normalized=False)
    compile_dataset(task, read=read_lines)
    compiled(pages, tmp_path / "ds", normalized=False)
    single = ReadBack(task.output)
    manifest = read_manifest(tmp_path / "ds" / "dataset.json")
    assert single.dataset.alphabet == dict(manifest.alphabet)
    parts = [ReadBack(tmp_path / "ds" / shard.name) for shard in manifest.shards]
    lines = [(part, line) for part in parts for line in range(len(part))]
    assert [dataclasses.replace(part.index.entry(line), offset=0) for part, line in lines] == [
        dataclasses.replace(entry, offset=0) for entry in single.entries()
    ]
    assert [part.png(line) for part, line in lines] == [single.png(line) for line in range(len(single))]


def test_tar_shards_are_read_by_webdataset(tmp_path: Path, pages: list[Path]) -> None:
    """People feed such tars to other programs, which go by the convention."""
    webdataset = pytest.importorskip("webdataset")
    compiled(pages, tmp_path / "ds", shard_format="webdataset", shard_size=30_000)
    urls = [str(path) for path in sorted((tmp_path / "ds").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pill"))
    assert len(urls) > 1
    assert [sample["txt"] for sample in samples] == expected_texts(pages)
    keys = [sample["__key__"] for sample in samples]
    assert len(set(keys)) == len(keys)
    assert not any(set(key) & set("./") for key in keys)
    assert keys == sorted(keys)
    facts = samples[0]["json"]
    assert set(facts) == JSON_FIELDS
    assert (facts["width"], facts["height"]) == samples[0]["png"].size
    assert (facts["im_mode"], facts["source_mode"], facts["normalized_height"]) == ("L", "RGB", 16)
    assert facts["languages"] == ["deu", "lat"]


def test_tar_shards_carry_nothing_of_this_machine(tmp_path: Path, pages: list[Path]) -> None:
    """Their checksums say whether two data sets are the same."""
    compiled(pages, tmp_path / "ds", shard_format="webdataset")
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "ds" / "000000.tar").read_bytes())) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {
            (0, 0, 0, "ketos", "ketos", 0o644)
        }


def test_progress_counts_what_all_processes_did(tmp_path: Path, pages: list[Path]) -> None:
    seen: list[CompileProgress] = []
    summary = compile_shards(job(pages, tmp_path / "ds"), on_page=seen.append, read=read_lines)
    assert summary is not None
    assert [at.pages for at in seen] == list(range(1, 16))
    assert (seen[-1].total, seen[-1].lines, seen[-1].skipped) == (15, summary.lines, 3)


@pytest.mark.parametrize("shard_format", FORMATS)
@pytest.mark.parametrize("size", [1, 3])
def test_nothing_usable_leaves_nothing(
    tmp_path: Path, pages: list[Path], shard_format: str, size: int
) -> None:
    for page in pages:
        page.write_text("!no", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="Nothing to compile in 15 files, 15 of them for no baseline"):
        together(size, job(pages, tmp_path / "ds", shard_format=shard_format))
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]


def test_two_commands_of_one_job_make_one_data_set(tmp_path: Path, line_pairs: Pairs) -> None:
    """As torchrun and srun start them: the same command, told apart by the environment."""
    sources = line_pairs(12)
    out = tmp_path / "ds"
    arguments = ["--workers", "0", "compile", "-f", "path", "-o", out, "--shard-format", "arrow"]
    command = [sys.executable, "-m", "distrib", *map(str, arguments), "--shard-size", "4K"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [*command, *map(str, sources)],
            env={**environment, "RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("1", "0")
    ]
    (follower, leader) = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], (leader, follower)
    assert "12 lines of 12 files" in leader[0]
    assert "shards of" in leader[0]
    assert follower == ("", "")
    assert texts(out) == [f"pair {number}" for number in range(12)]
