"""Data sets of any size: the lines of real or drawn ground truth written over and over under new names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

HEIGHT = 120
LINES_A_PAGE = 30
SHARD_BYTES = 256 << 20


def packed_lines(data: Path, scratch: Path, *, height: int = HEIGHT) -> list[Any]:
    """Normalised lines of print16-alto below ``data``, else of drawn pages."""
    from distrib.shards.compiling.pack import PackTask, pack

    pages = sorted((data / "print16-alto").glob("**/*.xml"))
    if not pages:
        from distrib.ground_truth.sample import write_sample

        write_sample(scratch / "sample", pairs=0, pages=12)
        pages = sorted((scratch / "sample" / "alto").glob("*.xml"))
    task = PackTask(sources=pages, format_type="alto", line_type="baselines", height=height, normalized=True)
    return [line for page in pack(task) for line in page.lines]


def pages_of(lines: Sequence[Any], size: int) -> Iterator[Any]:
    """Pages of these lines, every line with an id of its own, until the images have ``size`` bytes."""
    from distrib.shards.compiling.pack import PackedPage

    written = 0
    endless = (dataclasses.replace(lines[number % len(lines)], line_id=f"l{number}") for number in count())
    for number in count():
        if written >= size:
            return
        source = f"page{number:07d}.xml"
        page = tuple(dataclasses.replace(line, source=source) for line in islice(endless, LINES_A_PAGE))
        written += sum(len(line.png) for line in page)
        yield PackedPage(source=Path(source), lines=page, digest=number.to_bytes(16, "little"))


def write_folder(target: Path, lines: Sequence[Any], size: int, shard_format: Any) -> Path:
    """A folder of shards of about ``size`` bytes, as `ketos compile --shard-format` leaves it."""
    from distrib.shards.compiling.merge import merge_parts
    from distrib.shards.compiling.output_folder import OutputFolder
    from distrib.shards.compiling.part import PartWriter, Position, ShardSettings
    from distrib.shards.compiling.work_folder import WorkFolder

    output = OutputFolder(target)
    work = WorkFolder(output)
    output.work.mkdir()
    work.prepare("repeated")
    settings = ShardSettings(
        format=shard_format,
        shard_size=SHARD_BYTES,
        line_type="baselines",
        legacy_polygons=False,
        recordbatch_size=100,
        height=HEIGHT,
        normalized=True,
    )
    sources = []
    with PartWriter(work.begin_part(0), settings, number=0, first=Position()) as writer:
        for number, page in enumerate(pages_of(lines, size)):
            writer.add(page, number=number)
            sources.append(page.source)
    merge_parts(work, parts=1, sources=sources, settings=settings, report=None)
    output.publish()
    output.discard_work()
    return target


def write_file(target: Path, lines: Sequence[Any], size: int) -> Path:
    """A single `.arrow` of about ``size`` bytes."""
    from distrib.shards.compiling.arrow_writer import ArrowWriter

    with ArrowWriter(target, line_type="baselines", height=HEIGHT, normalized=True) as writer:
        for page in pages_of(lines, size):
            for line in page.lines:
                writer.add(line)
    return target
