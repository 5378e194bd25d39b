"""A compile that is killed goes on where it was, and one that is repeated does only what has changed."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distrib.errors import KetosError, RunError
from distrib.ground_truth.records import LineImage, Skip, SkipReason
from distrib.shards.compiling.compile import CompileJob, CompileSummary
from distrib.shards.compiling.compile_shards import compile_shards

_FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


class Reader:
    """Reads text files as pages, a line image a line, and remembers which it has read."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, source: Path, **_: object) -> Iterator[LineImage | Skip]:
        self.seen.append(source.name)
        for number, text in enumerate(source.read_text(encoding="utf-8").splitlines()):
            if text.startswith("!"):
                reason = SkipReason.NO_BASELINE
                yield Skip(source=source, line_id=str(number), reason=reason, detail=f"in {source}: {text}")
            else:
                image = Image.new("1" if number == 1 else "L", (10 + 3 * len(text), 12), 1)
                languages = ("deu",) if number % 2 else ()
                yield LineImage(
                    source=source, line_id=str(number), text=text, image=image, languages=languages
                )


@pytest.fixture
def pages(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pages"
    folder.mkdir()
    paths = [folder / f"{number:02d}.xml" for number in range(15)]
    for number, path in enumerate(paths):
        lines = [f"page {number} line {line}" for line in range(number % 5)]
        path.write_text("\n".join([*lines, "!left out"] if number % 3 else lines), encoding="utf-8")
    return paths


def compiled(
    sources: list[Path], output: Path, reader: Reader | None = None, **changes: Any
) -> CompileSummary:
    options: dict[str, Any] = {"rank": 0, "world_size": 1}
    options = {name: changes.pop(name, value) for name, value in options.items()}
    values = {"shard_format": "arrow", "shard_size": 900, "workers": 0, "height": 16, "normalized": True}
    job = CompileJob(**{"sources": sources, "output": output, **values, **changes})
    summary = compile_shards(job, read=reader or Reader(), **options)
    assert summary is not None or options["rank"]
    return summary  # type: ignore[return-value]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def file_events(
    action: Callable[[], object], *, limit: float = math.inf, kinds: tuple[str, ...] = _FILE_EVENTS
) -> int:
    """How often ``action``, in a process of its own, uses files so; it is killed at number ``limit``."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(name: str, _: object) -> None:
            nonlocal count
            if name in kinds:
                if count >= limit:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(hook)
        try:
            action()
        finally:
            os.write(sender, str(count).encode())
            os._exit(0)
    _, status = os.waitpid(child, 0)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        assert os.WIFSIGNALED(status) == (limit < math.inf)
        return int(pipe.read() or limit)


@pytest.mark.parametrize("shard_format", ["arrow", "webdataset"])
def test_killed_at_any_file_it_is_finished_by_the_next_start(
    tmp_path: Path, pages: list[Path], shard_format: str
) -> None:
    """Compiling a large collection takes days; a node that fails must not cost them."""
    (tmp_path / "reports").mkdir()
    settings: dict[str, Any] = {
        "shard_format": shard_format,
        "shard_size": {"arrow": 900, "webdataset": 9000}[shard_format],
        "report": tmp_path / "reports" / "report.jsonl",
    }
    compiled(pages, tmp_path / "wanted", **settings)  # here, so that all modules are there before the count
    events = file_events(lambda: compiled(pages, tmp_path / "counted", **settings))
    wanted, report = contents(tmp_path / "wanted"), settings["report"].read_bytes()
    kept = 0
    kills = range(1, events, events // 12)
    for number in kills:
        out = tmp_path / f"{number}"
        file_events(lambda out=out: compiled(pages, out, **settings), limit=number)  # type: ignore[misc]
        reader = Reader()
        compiled(pages, out, reader, **settings)
        assert contents(out) == wanted
        assert settings["report"].read_bytes() == report
        kept += len(reader.seen) < len(pages)
    assert kept > len(kills) / 2
    assert hidden(tmp_path) == []


def test_killed_while_it_replaces_a_data_set_it_loses_neither(tmp_path: Path, pages: list[Path]) -> None:
    """Between the two renames there is no data set under its name for a moment."""
    old, wanted = tmp_path / "old", tmp_path / "wanted"
    compiled(pages, old)
    pages[4].write_text("changed\nlines", encoding="utf-8")
    shutil.copytree(old, wanted)
    renaming = ("os.rename",)
    events = file_events(lambda: compiled(pages, wanted), kinds=renaming)
    before, after = contents(old), contents(wanted)
    assert before != after
    states = set()
    for number in (*range(0, events - 6, 8), *range(events - 6, events)):
        out = tmp_path / f"{number}"
        shutil.copytree(old, out)
        file_events(lambda out=out: compiled(pages, out), limit=number, kinds=renaming)  # type: ignore[misc]
        found = contents(out) if out.exists() else None
        assert found in (before, after, None)
        states.add("none" if found is None else "old" if found == before else "new")
        compiled(pages, out)
        assert contents(out) == after
    assert hidden(tmp_path) == []
    assert states == {"none", "old", "new"}


def test_whole_shards_are_kept(tmp_path: Path, pages: list[Path]) -> None:
    def stop(at: Any) -> None:
        if at.pages == 12:
            raise KeyboardInterrupt

    job = CompileJob(sources=pages, output=tmp_path / "ds", shard_format="arrow", shard_size=600, workers=0)
    with pytest.raises(KeyboardInterrupt):
        compile_shards(job, on_page=stop, read=Reader())
    assert not (tmp_path / "ds").exists()
    reader = Reader()
    summary = compile_shards(job, read=reader)
    assert summary is not None
    assert set(reader.seen) <= {path.name for path in pages[9:]}
    assert summary.reused == 15 - len(reader.seen)


@pytest.mark.parametrize("changes", [{"shard_size": 2500}, {"shard_format": "webdataset"}, {"ranks": 3}])
def test_what_was_finished_serves_another_layout(
    tmp_path: Path, pages: list[Path], changes: dict[str, Any]
) -> None:
    """After a failure people start again with more processes, or fewer."""
    out = tmp_path / "ds"
    file_events(lambda: compiled(pages, out), limit=110)
    assert hidden(tmp_path) == [".ds.compiling"]
    readers = [Reader() for _ in range(changes.pop("ranks", 1))]
    for target in (out, tmp_path / "wanted"):
        with ThreadPoolExecutor(len(readers)) as threads:
            for rank, reader in enumerate(readers):
                options = {"rank": rank, "world_size": len(readers), **changes}
                threads.submit(compiled, pages, target, reader if target == out else Reader(), **options)
    assert contents(out) == contents(tmp_path / "wanted")
    assert 0 < sum(len(reader.seen) for reader in readers) < 13
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("shard_format", ["arrow", "webdataset"])
@pytest.mark.parametrize("normalized", [True, False])
def test_only_a_changed_page_is_done_again(
    tmp_path: Path, pages: list[Path], shard_format: str, normalized: bool
) -> None:
    settings: dict[str, Any] = {"shard_format": shard_format, "normalized": normalized}
    out, report = tmp_path / "ds", tmp_path / "report.jsonl"
    assert compiled(pages, out, report=report, **settings).reused == 0
    skipped = report.read_bytes()
    reader = Reader()
    summary = compiled(pages, out, reader, report=report, **settings)
    assert (reader.seen, summary.reused) == ([], 15)
    assert report.read_bytes() == skipped
    assert summary.skipped[SkipReason.NO_BASELINE] == 10
    assert summary.examples[SkipReason.NO_BASELINE].source == pages[1]

    pages[7].write_text("now only this", encoding="utf-8")
    summary = compiled(pages, out, reader, **settings)
    assert (reader.seen, summary.reused) == (["07.xml"], 14)
    compiled(pages, tmp_path / "fresh", **settings)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 17},
        {"normalized": False},
        {"skip_empty_lines": False},
        {"legacy_polygons": True},
        {"force_type": "bbox"},
        {"linetype": "bbox"},
        {"format_type": "page"},
    ],
)
def test_other_settings_make_other_lines(tmp_path: Path, pages: list[Path], changes: dict[str, Any]) -> None:
    out = tmp_path / "ds"
    compiled(pages, out)
    reader = Reader()
    assert compiled(pages, out, reader, **changes).reused == 0
    assert len(reader.seen) == 15


def test_files_added_removed_and_moved(tmp_path: Path, pages: list[Path]) -> None:
    out, report = tmp_path / "ds", tmp_path / "report.jsonl"
    compiled(pages[:10], out)
    moved = tmp_path / "elsewhere"
    pages[0].parent.rename(moved)
    now = [moved / page.name for page in pages[3:]]
    reader = Reader()
    compiled(now, out, reader, report=report)
    assert reader.seen == [page.name for page in pages[10:]]
    # Reasons name files where they are now.
    for line in report.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        assert Path(entry["source"]).parent == moved
        assert f"in {entry['source']}:" in entry["detail"]
    compiled(now, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_page_image_that_changes_or_appears_is_seen(tmp_path: Path) -> None:
    """The XML stays the same when a better scan takes the place of the image."""
    source, image = tmp_path / "a.xml", tmp_path / "a.png"
    source.write_text(
        '<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/2019-07-15">'
        '<Page imageFilename="a.png" imageWidth="80" imageHeight="60"><TextRegion id="r"><TextLine id="l">'
        '<Coords points="5,5 70,5 70,40 5,40"/><Baseline points="5,30 70,30"/>'
        "<TextEquiv><Unicode>text</Unicode></TextEquiv></TextLine></TextRegion></Page></PcGts>",
        encoding="utf-8",
    )
    other = tmp_path / "b.xml"
    other.write_text(source.read_text(encoding="utf-8").replace("a.png", "b.png"), encoding="utf-8")
    Image.new("L", (80, 60), 200).save(tmp_path / "b.png")

    def run() -> CompileSummary:
        job = CompileJob(sources=[source, other], output=tmp_path / "ds", shard_format="arrow", workers=0)
        summary = compile_shards(job)
        assert summary is not None
        return summary

    assert (run().lines, run().reused) == (1, 2)
    Image.new("L", (80, 60), 100).save(image)
    assert (run().lines, run().reused) == (2, 2)
    Image.new("L", (80, 60), 50).save(image)
    assert run().reused == 1


def test_pairs_are_known_by_image_and_text(tmp_path: Path, line_pairs: Callable[[int], list[Path]]) -> None:
    sources = line_pairs(20)

    def run() -> int:
        job = CompileJob(
            sources=sources, output=tmp_path / "ds", shard_format="arrow", workers=2, format_type="path"
        )
        summary = compile_shards(job)
        assert summary is not None
        return summary.reused

    assert (run(), run()) == (0, 20)
    sources[3].with_suffix(".gt.txt").write_text("other", encoding="utf-8")
    sources[4].write_bytes(sources[5].read_bytes())
    assert run() == 18


def test_a_damaged_data_set_is_not_copied_from(tmp_path: Path, pages: list[Path]) -> None:
    """A flipped byte must not live on in every data set made after it."""
    out = tmp_path / "ds"
    compiled(pages, out)
    wanted = contents(out)
    shard = out / "000002.arrow"
    content = bytearray(shard.read_bytes())
    content[content.index(b"\x89PNG") + 50] ^= 1
    shard.write_bytes(content)
    reader = Reader()
    compiled(pages, out, reader)
    assert 0 < len(reader.seen) < 15
    assert contents(out) == wanted
    (out / "index.arrow").write_bytes(b"nothing")
    compiled(pages, out)
    assert contents(out) == wanted


@pytest.mark.parametrize("call", [2, 5])
def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path, pages: list[Path], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    out = tmp_path / "ds"
    compiled(pages[:3], out)
    before = contents(out)
    calls = []

    def full(path: Path) -> str:
        calls.append(path)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return "blake2b:" + 32 * "0"

    with monkeypatch.context() as patched:
        patched.setattr("distrib.shards.compiling.part.checksum_of", full)
        with pytest.raises(RunError, match="no space left"):
            compiled(pages, out)
    assert contents(out) == before
    assert hidden(tmp_path) == [".ds.compiling"]
    reader = Reader()
    compiled(pages, out, reader)
    assert len(reader.seen) < 13
    assert hidden(tmp_path) == []


def test_an_error_keeps_the_data_set(tmp_path: Path, pages: list[Path]) -> None:
    out = tmp_path / "ds"
    compiled(pages, out)
    before = contents(out)
    for page in pages:
        page.write_text("", encoding="utf-8")
    with pytest.raises(KetosError, match="no lines in"):
        compiled(pages, out)
    assert contents(out) == before
    assert hidden(tmp_path) == []
