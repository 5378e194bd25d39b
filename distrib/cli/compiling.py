"""Compiling with progress and summary, as `compile` does and as `train` and `test` do where needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from distrib.cli.display import progress
from distrib.config.sizes import parse_size
from distrib.errors import InputError
from distrib.files import written_whole
from distrib.wording import plural, size

if TYPE_CHECKING:
    from distrib.config.choices import DataFormat, LineTypeName
    from distrib.runtime.processes import Processes
    from distrib.shards.compiling.compile import CompileJob, CompileSummary
    from distrib.shards.storage import ShardStorage
    from distrib.stream.lines import LineCollection

_COMPILE_FIRST: Final = "look at its log, and compile first with `ketos compile` and give -f binary"


def compile_with_progress(job: CompileJob) -> CompileSummary:
    """Run a compile job, showing how far it is."""
    from distrib.shards.compiling.compile import compile_dataset

    with progress("Compiling") as show:
        return compile_dataset(
            job, on_page=lambda at: show(at.pages, at.total, f"files, {plural(at.lines, 'line')}")
        )


def print_summary(summary: CompileSummary) -> None:
    """What was compiled, and what was left out by reason with an example of each."""
    click.echo(
        f"{plural(summary.lines, 'line')} of {plural(summary.pages, 'file')}, "
        f"{plural(summary.characters, 'character')}, alphabet of {len(summary.alphabet)}, "
        f"{size(summary.bytes)} in {summary.seconds:.1f} s: {summary.output}"
    )
    for reason, count in summary.skipped.most_common():
        example = summary.examples[reason]
        place = f"{example.source}" + (f", line {example.line_id}" if example.line_id else "")
        click.echo(f"left out: {count:,} {reason}, such as {place}", err=True)


def open_storage(cache_dir: Path | None, cache_size: str) -> ShardStorage:
    """Where shards are read from, through a node's cache if there is one."""
    from distrib.shards.cache import ShardCache
    from distrib.shards.storage import ShardStorage

    size = parse_size(cache_size, option="--cache-size")
    return ShardStorage(None if cache_dir is None else ShardCache(cache_dir, size))


def open_data(
    *,
    arguments: Sequence[str],
    manifests: Sequence[Path],
    format_type: DataFormat,
    linetype: LineTypeName | None,
    legacy_polygons: bool,
    workers: int,
    compiled: Path,
    storage: ShardStorage,
    height: int = 0,
    reuse: bool = False,
    again: bool = False,
    textless: bool = False,
    processes: Processes | None = None,
) -> LineCollection:
    """The lines that a command's arguments and manifests name, at every one of ``processes``.

    Ground truth is compiled to ``compiled`` first, unless ``reuse`` and it was compiled before from the same
    sources; from others it is compiled only if ``again``. Where ``height`` is given, lines are normalised to
    it. Lines without text are left out, unless they may be ``textless``. Rank zero goes first, and builds
    what all then use, while the others wait for as long as it lives.
    """
    from distrib.ground_truth.sources import expand_sources
    from distrib.shards.addresses import expand_datasets
    from distrib.stream.lines import open_collection

    sources_file = compiled.with_suffix(".sources")

    def addresses() -> list[str]:
        if format_type == "binary":
            return expand_datasets(arguments, manifests)
        if reuse and compiled.is_file():
            if not _other_sources(sources_file, arguments, manifests):
                return [str(compiled)]
            if not again:
                raise InputError(
                    f"The run was started with other ground truth (see {sources_file}); resume without "
                    "naming any, or add --resume-anyway to compile what is named now."
                )
        sources = expand_sources(arguments, manifests, format_type=format_type)
        compiled.parent.mkdir(parents=True, exist_ok=True)
        _compile(sources)
        with written_whole(sources_file) as file:
            file.write(_named_sources(arguments, manifests))
        return [str(compiled)]

    def _compile(sources: Sequence[Path]) -> None:
        from distrib.shards.compiling.compile import DEFAULT_HEIGHT, CompileJob

        assert format_type != "binary"
        job = CompileJob(
            sources=sources,
            output=compiled,
            format_type=format_type,
            linetype=linetype,
            legacy_polygons=legacy_polygons,
            skip_empty_lines=not textless,
            workers=workers,
            report=compiled.with_suffix(".skipped.jsonl"),
            normalized=height > 0,
            height=height or DEFAULT_HEIGHT,
        )
        print_summary(compile_with_progress(job))

    if processes is None:
        return open_collection(addresses(), storage)

    def open_first() -> tuple[list[str], LineCollection]:
        found = addresses()
        return found, open_collection(found, storage)

    binary = format_type == "binary"
    opened = processes.after_first(
        open_first,
        doing="opening the data" if binary else "compiling the ground truth",
        remedy="look at its log and at the disk with the data" if binary else _COMPILE_FIRST,
    )
    found = processes.on_first(lambda: [] if opened is None else opened[0])
    return processes.agree(lambda: open_collection(found, storage) if opened is None else opened[1])


def _named_sources(arguments: Sequence[str], manifests: Sequence[Path]) -> bytes:
    """What was named as ground truth: paths, and the lists with what they say."""
    named = [str(Path(argument).absolute()).encode("utf-8", "surrogateescape") for argument in arguments]
    listed = [str(path.absolute()).encode("utf-8", "surrogateescape") for path in manifests]
    return b"\n".join([*named, *listed, *(path.read_bytes() for path in manifests)])


def _other_sources(known: Path, arguments: Sequence[str], manifests: Sequence[Path]) -> bool:
    """Whether other ground truth is named than a run was started with."""
    try:
        return known.read_bytes() != _named_sources(arguments, manifests)
    except OSError:
        return False  # lists may be gone: what was compiled from them is all that a resumed run needs
