"""Compiling gives the same file however it is run, and says what it left out."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distrib.errors import InputError, RunError
from distrib.ground_truth.records import LineImage, Skip, SkipReason
from distrib.shards.compiling.compile import CompileJob, CompileProgress, compile_dataset
from distrib.shards.compiling.pack import PAIRS_A_TASK

from .conftest import ReadBack

Pairs = Callable[[int], list[Path]]

FAKE_READER = """
import os, signal
from PIL import Image
from distrib.ground_truth.records import LineImage

def killed_at_page_3(source, **options):
    if source.name == "3.xml":
        os.kill(os.getpid(), signal.SIGKILL)
    yield LineImage(source=source, line_id="l", text="x", image=Image.new("L", (9, 9)))
"""


def path_job(tmp_path: Path, sources: list[Path], **changes: Any) -> CompileJob:
    return CompileJob(
        **{"sources": sources, "output": tmp_path / "out.arrow", "format_type": "path", **changes}
    )


def lines_of(*texts: str, mode: str = "L", width: int = 30) -> Callable[..., Iterator[LineImage | Skip]]:
    """A reader that finds lines of these texts in every source."""

    def read(source: Path, **_: object) -> Iterator[LineImage | Skip]:
        for number, text in enumerate(texts):
            image = Image.new(mode, (width, 12))
            yield LineImage(source=source, line_id=f"l{number}", text=text, image=image)

    return read


def test_the_file_is_the_same_for_every_number_of_workers(tmp_path: Path, line_pairs: Pairs) -> None:
    """The order of samples follows the file: it must not depend on which process was faster."""
    sources = line_pairs(3 * PAIRS_A_TASK + 5)
    sources[7].write_bytes(b"no image")
    sources[20].with_suffix(".gt.txt").unlink()
    outputs, reports = [], []
    for workers in (0, 1, 2):
        output, report = tmp_path / f"{workers}.arrow", tmp_path / f"{workers}.jsonl"
        job = path_job(tmp_path, sources, output=output, report=report, workers=workers, recordbatch_size=9)
        summary = compile_dataset(job)
        assert (summary.lines, summary.sources) == (len(sources) - 2, len(sources))
        outputs.append(output.read_bytes())
        reports.append(report.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    assert reports[0] == reports[1] == reports[2]
    assert ReadBack(tmp_path / "2.arrow").texts()[:8] == [f"pair {i}" for i in (0, 1, 2, 3, 4, 5, 6, 8)]


def test_summary_counts_what_happened(tmp_path: Path) -> None:
    job = path_job(tmp_path, [Path("a"), Path("b")])
    progress: list[CompileProgress] = []
    summary = compile_dataset(job, on_page=progress.append, read=lines_of("aab", "", "\u00a0 "))
    assert (summary.sources, summary.pages, summary.lines, summary.characters) == (2, 2, 2, 6)
    assert dict(summary.alphabet) == {"a": 4, "b": 2}
    assert dict(summary.skipped) == {SkipReason.EMPTY_TEXT: 4}
    assert summary.examples[SkipReason.EMPTY_TEXT].line_id == "l1"
    assert summary.bytes == job.output.stat().st_size > 0
    assert summary.seconds > 0
    assert progress == [
        CompileProgress(pages=1, total=2, lines=1, skipped=2),
        CompileProgress(pages=2, total=2, lines=2, skipped=4),
    ]


def test_empty_lines_are_kept_on_request(tmp_path: Path) -> None:
    """Pretraining uses lines without text."""
    job = path_job(tmp_path, [Path("a")], skip_empty_lines=False)
    assert compile_dataset(job, read=lines_of("", "x", " ")).lines == 3
    assert ReadBack(job.output).texts() == ["", "x", " "]


@pytest.mark.parametrize(
    ("options", "line_type"),
    [
        ({"format_type": "path"}, "bbox"),
        ({"format_type": "path", "linetype": "baselines"}, "bbox"),
        ({"format_type": "path", "force_type": "baseline"}, "baselines"),
        ({"format_type": "xml"}, "baselines"),
        ({"format_type": "alto", "linetype": "bbox"}, "bbox"),
        ({"format_type": "page", "force_type": "bbox"}, "bbox"),
    ],
)
def test_type_of_the_data_set(tmp_path: Path, options: dict[str, Any], line_type: str) -> None:
    """The type decides on centre-line normalisation; a wrong one trains on other images than it tests on."""
    job = path_job(tmp_path, [Path("a")], **options)
    compile_dataset(job, read=lines_of("x"))
    assert ReadBack(job.output).dataset.line_type == line_type


def test_options_reach_the_reader(tmp_path: Path) -> None:
    seen: dict[str, object] = {}

    def read(source: Path, **options: object) -> Iterator[LineImage | Skip]:
        seen.update(options)
        yield from lines_of("x")(source)

    job = path_job(tmp_path, [Path("a")], format_type="alto", linetype="bbox", legacy_polygons=True)
    compile_dataset(job, read=read)
    assert seen == {"format_type": "alto", "linetype": "bbox", "legacy_polygons": True, "textless": False}
    assert ReadBack(job.output).dataset.legacy_polygons


def test_a_line_that_cannot_be_stored_is_left_out_alone(tmp_path: Path) -> None:
    job = path_job(tmp_path, [Path("a.xml")], report=tmp_path / "skipped.jsonl")
    summary = compile_dataset(job, read=lines_of("good", "bad \udfff", "fine"))
    assert ReadBack(job.output).texts() == ["good", "fine"]
    assert dict(summary.skipped) == {SkipReason.UNREADABLE_TEXT: 1}
    assert "U+DFFF" in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8")


def test_an_image_without_pixels_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without pixels"):
        compile_dataset(path_job(tmp_path, [Path("a.xml")]), read=lines_of("x", width=0))


def test_a_defect_met_on_one_page_costs_the_rest_of_that_page(tmp_path: Path) -> None:
    """Hours of compiling must not be lost to one odd page, and it must not vanish silently either."""

    def read(source: Path, **_: object) -> Iterator[LineImage | Skip]:
        yield from lines_of("before")(source)
        if source.name == "1.xml":
            raise ZeroDivisionError("odd polygon")
        yield from lines_of("after")(source)

    job = path_job(tmp_path, [Path(f"{i}.xml") for i in range(3)])
    summary = compile_dataset(job, read=read)
    assert ReadBack(job.output).texts() == ["before", "after", "before", "before", "after"]
    assert summary.skipped[SkipReason.EXTRACTION_FAILED] == 1
    detail = summary.examples[SkipReason.EXTRACTION_FAILED].detail
    assert "1.xml" in detail
    assert "ZeroDivisionError: odd polygon" in detail


@pytest.mark.parametrize(
    ("raised", "kind"), [(InputError("bad option"), InputError), (MemoryError(), RunError)]
)
def test_errors_that_end_the_compilation(tmp_path: Path, raised: Exception, kind: type[Exception]) -> None:
    def read(source: Path, **_: object) -> Iterator[LineImage | Skip]:
        yield from lines_of("x")(source)
        raise raised

    with pytest.raises(kind, match=r"bad option|a\.xml does not fit in memory"):
        compile_dataset(path_job(tmp_path, [Path("a.xml")]), read=read)
    assert list(tmp_path.iterdir()) == []


def test_report_names_every_line_left_out(tmp_path: Path, line_pairs: Pairs) -> None:
    sources = line_pairs(3)
    sources[1].with_suffix(".gt.txt").write_text("", encoding="utf-8")
    gone = tmp_path / "pairs" / "gone \udce9.png"
    report = tmp_path / "skipped.jsonl"
    compile_dataset(path_job(tmp_path, [*sources, gone], report=report))
    first, second = map(json.loads, report.read_text(encoding="utf-8").splitlines())
    assert first.keys() == {"source", "line", "reason", "detail"}
    assert (first["source"], first["line"], first["reason"]) == (
        str(sources[1]),
        sources[1].name,
        "empty text",
    )
    assert (second["source"], second["line"]) == (str(gone), None)
    assert second["detail"]


def test_nothing_usable_in_one_source_gives_its_own_reason(tmp_path: Path, line_pairs: Pairs) -> None:
    """A swallowed reason ('no valid training data') is what people complain about most."""
    source = line_pairs(1)[0]
    source.with_suffix(".gt.txt").rename(source.with_suffix(".txt"))
    with pytest.raises(InputError, match=rf"missing text file.*{source.name}"):
        compile_dataset(path_job(tmp_path, [source]))
    assert not (tmp_path / "out.arrow").exists()


def test_nothing_usable_names_the_commonest_reason_and_writes_the_report(
    tmp_path: Path, line_pairs: Pairs
) -> None:
    sources = line_pairs(5)
    for source in sources[1:4]:
        source.with_suffix(".gt.txt").unlink()
    sources[0].write_bytes(b"")
    sources[4].write_bytes(b"")
    report = tmp_path / "skipped.jsonl"
    with pytest.raises(InputError, match=rf"in 5 files, 3 of them for missing text file.*{sources[1].name}"):
        compile_dataset(path_job(tmp_path, sources, report=report))
    assert len(report.read_text(encoding="utf-8").splitlines()) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "skipped.jsonl"]


def test_nothing_usable_names_what_befell_the_file_before_what_befell_a_line(tmp_path: Path) -> None:
    """A missing image loses the page; that one of its lines had no baseline either is no help."""

    def read(source: Path, **_: object) -> Iterator[LineImage | Skip]:
        for line in ("l1", "l2"):
            yield Skip(source=source, line_id=line, reason=SkipReason.NO_BASELINE, detail="none")
        yield Skip(source=source, line_id=None, reason=SkipReason.MISSING_IMAGE, detail="no a.jpg")

    with pytest.raises(InputError, match=r"missing image.*a\.xml: no a\.jpg"):
        compile_dataset(path_job(tmp_path, [Path("a.xml")]), read=read)


def test_nothing_usable_for_its_lines_names_one(tmp_path: Path) -> None:
    def read(source: Path, **_: object) -> Iterator[LineImage | Skip]:
        for line in ("l1", "l2"):
            yield Skip(source=source, line_id=line, reason=SkipReason.NO_BASELINE, detail="none")

    with pytest.raises(InputError, match=r"no baseline.*line l1 of a\.xml: none"):
        compile_dataset(path_job(tmp_path, [Path("a.xml")]), read=read)


def test_nothing_usable_among_empty_lines_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--keep-empty-lines"):
        compile_dataset(path_job(tmp_path, [Path("a")]), read=lines_of("", ""))


def test_pages_without_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no lines in a\.xml"):
        compile_dataset(path_job(tmp_path, [Path("a.xml")]), read=lines_of())


def test_no_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ground truth"):
        compile_dataset(path_job(tmp_path, []))


def test_outputs_never_destroy_ground_truth_or_each_other(tmp_path: Path, line_pairs: Pairs) -> None:
    sources = line_pairs(2)
    for changes in ({"output": sources[1]}, {"report": sources[1]}):
        with pytest.raises(InputError, match="is one of the ground truth files"):
            compile_dataset(path_job(tmp_path, sources, **changes))
    with pytest.raises(InputError, match="are both"):
        compile_dataset(path_job(tmp_path, sources, report=tmp_path / "pairs" / ".." / "out.arrow"))
    assert sources[1].read_bytes()[:4] == b"\x89PNG"


def test_impossible_report_is_refused_before_any_work(tmp_path: Path, line_pairs: Pairs) -> None:
    with pytest.raises(InputError, match="does not exist"):
        compile_dataset(path_job(tmp_path, line_pairs(1), report=tmp_path / "missing" / "r.jsonl"))


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, line_pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, because a superuser may write anywhere."""
    sources = line_pairs(1)

    def denied(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("distrib.files._create", denied)
    with pytest.raises(InputError, match=r"may not write .*out\.arrow"):
        compile_dataset(path_job(tmp_path, sources))


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, line_pairs: Pairs, workers: int) -> None:
    sources = line_pairs(PAIRS_A_TASK * 3)

    def interrupt(progress: CompileProgress) -> None:
        if progress.pages == PAIRS_A_TASK + 1:
            signal.raise_signal(signal.SIGINT)

    job = path_job(tmp_path, sources, workers=workers, recordbatch_size=4, report=tmp_path / "r.jsonl")
    with pytest.raises(KeyboardInterrupt):
        compile_dataset(job, on_page=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_a_killed_worker_names_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_reader.py").write_text(FAKE_READER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import fake_reader  # type: ignore[import-not-found]

    try:
        out = tmp_path / "out"
        out.mkdir()
        job = CompileJob(sources=[Path(f"{i}.xml") for i in range(9)], output=out / "a.arrow", workers=2)
        with pytest.raises(RunError, match=r"killed.*3\.xml.*fewer --workers"):
            compile_dataset(job, read=fake_reader.killed_at_page_3)
        assert list(out.iterdir()) == []
    finally:
        sys.modules.pop("fake_reader", None)
