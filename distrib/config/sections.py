"""The sections of an experiment: kraken 7's options with their names, short forms and defaults, and ours.

Each class is one section of the YAML file and one command of the command line; :class:`Globals` is the top
of both. Options that kraken does not have stand last in each class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distrib.config.choices import (
    AS_TRAINED,
    AUTHOR_HELP,
    BASE_DIR_HELP,
    BATCH_PIXELS_HELP,
    CACHE_DIR_HELP,
    CACHE_SIZE_HELP,
    DATA_FORMAT_HELP,
    DEFAULT_SPEC,
    FORMAT_HELP,
    LICENSE_HELP,
    NORMALIZATION_HELP,
    REORDER_HELP,
    WHITESPACE_HELP,
    BaseDirection,
    DataFormat,
    GroundTruthFormat,
    LineTypeName,
    Precision,
    WeightsFormat,
)
from distrib.config.fields import argument, option
from distrib.config.launching import AnyLaunch
from distrib.config.learning import Pretrain, Train


@dataclass(frozen=True, kw_only=True)
class Globals:
    """Options of every command: the top of the command line and of an experiment file."""

    verbose: int = option(0, "-v", "--verbose", count=True, help="Say more; -vv adds tracebacks to errors.")
    device: str = option(
        "auto", "-d", "--device", help="Device to compute on: auto, cpu, mps, cuda, cuda:0, ..."
    )
    precision: Precision = option("32-true", "--precision", help="Numerical precision of training.")
    num_workers: int = option(1, "--workers", minimum=0, help="Worker processes reading data.")
    num_threads: int = option(1, "--threads", minimum=1, help="Threads of a process for computing.")
    seed: int | None = option(
        None,
        "-s",
        "--seed",
        minimum=0,
        maximum=2**32 - 1,
        help="Seed of initial weights, order and dropout (else 42) and of the automatic split.",
    )
    deterministic: bool = option(
        False,
        "-r",
        "--deterministic",
        off=("--no-deterministic",),
        help="Use deterministic algorithms only.",
    )
    rendezvous_timeout: int = option(
        300,
        "--rendezvous-timeout",
        minimum=1,
        help="Seconds in which all processes of a job must come together.",
    )
    stall_timeout: int = option(
        1800,
        "--stall-timeout",
        minimum=0,
        help="Seconds without any progress after which a run ends and says which process hung and where; 0: "
        "never.",
    )


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Compile ground truth into a binary data set."""

    output: Path = option(Path("dataset.arrow"), "-o", "--output", help="Data set file to write.")
    format_type: GroundTruthFormat = option("xml", "-f", "--format-type", help=FORMAT_HELP + ".")
    files: tuple[Path, ...] = option(
        (), "-F", "--files", help="File with further paths, one a line; may be given more than once."
    )
    linetype: LineTypeName | None = option(
        None,
        "--linetype",
        help="Line images cut along baselines and polygons (default for XML) or as bounding boxes.",
    )
    force_type: Literal["bbox", "baseline"] | None = option(
        None, "--force-type", help="Type recorded in the data set, however its lines were cut."
    )
    skip_empty_lines: bool = option(
        True,
        "--skip-empty-lines",
        off=("--keep-empty-lines",),
        help="Leave out lines without text; keep them for pretraining.",
    )
    recordbatch_size: int = option(100, "--recordbatch-size", minimum=1, help="Lines of a record batch.")
    legacy_polygons: bool = option(False, "--legacy-polygons", help="Use the line extractor of kraken < 5.")
    ground_truth: tuple[str, ...] = argument("[GROUND_TRUTH]...")
    report: Path | None = option(
        None, "--report", help="Write what was left out here, one JSON object a line: source, line, reason."
    )
    shard_format: Literal["arrow", "webdataset"] | None = option(
        None, "--shard-format", help="Write a folder of numbered shards of this format and a dataset.json."
    )
    shard_size: str = option(
        "256M", "--shard-size", metavar="SIZE", help="Size of a shard in bytes, with K, M or G."
    )
    height: int = option(
        120, "--height", minimum=1, maximum=4096, help="Height in pixels of the network's input."
    )
    lines: Literal["auto", "raw", "normalized"] = option(
        "auto",
        "--lines",
        help="Store lines as cut (raw), or straightened and scaled to --height, so that training only "
        "decodes them (normalized); auto is normalized for shards, raw for a single file.",
    )


@dataclass(frozen=True, kw_only=True)
class Test:
    """Evaluate a model and report its errors."""

    arch: Literal["vgsl"] = option("vgsl", "--arch", help="Architecture family.")
    batch_size: int = option(1, "-B", "--batch-size", minimum=1, help="Lines of a batch.")
    model: Path | None = option(None, "-m", "--model", help="Weights file or checkpoint to evaluate.")
    test_data: tuple[Path, ...] = option(
        (), "-e", "--test-data", help="File with paths of test data, one a line; repeatable."
    )
    format_type: DataFormat = option("xml", "-f", "--format-type", help=DATA_FORMAT_HELP)
    linetype: LineTypeName | None = option(
        None,
        "--linetype",
        help="Line type; by default the model's for XML, bbox for path, as recorded for binary.",
    )
    padding: int | None = option(
        None,
        "--pad",
        minimum=0,
        maximum=10_000,
        help="Columns of padding left and right of a line, in pixels." + AS_TRAINED,
    )
    bidi_reordering: bool | None = option(
        None, "--reorder", off=("--no-reorder",), help=REORDER_HELP + AS_TRAINED
    )
    base_dir: BaseDirection | None = option(None, "--base-dir", help=BASE_DIR_HELP + AS_TRAINED)
    normalization: Literal["NFD", "NFKD", "NFC", "NFKC", "none"] | None = option(
        None, "-u", "--normalization", help=NORMALIZATION_HELP + AS_TRAINED
    )
    normalize_whitespace: bool | None = option(
        None,
        "-n",
        "--normalize-whitespace",
        off=("--no-normalize-whitespace",),
        help=WHITESPACE_HELP + AS_TRAINED,
    )
    no_legacy_polygons: bool = option(
        False, "--no-legacy-polygons", help="Never use the line extractor of kraken < 5."
    )
    test_set: tuple[str, ...] = argument("[TEST_SET]...")
    json: Path | None = option(
        None, "--json", help="Write the report as JSON to this file; - for standard output."
    )
    worst: int = option(0, "--worst", minimum=0, help="Print this many lines with the most errors.")
    per_file: bool = option(False, "--per-file", help="Print the character error rate of each source file.")
    batch_pixels: int = option(0, "--batch-pixels", minimum=0, help=BATCH_PIXELS_HELP)
    cache_dir: Path | None = option(None, "--cache-dir", help=CACHE_DIR_HELP)
    cache_size: str = option("20G", "--cache-size", metavar="SIZE", help=CACHE_SIZE_HELP)


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert checkpoints and weights files."""

    output: Path = option(Path("model.safetensors"), "-o", "--output", help="Weights file to write.")
    weights_format: WeightsFormat = option(
        "safetensors", "--weights-format", help="Format of the weights file."
    )
    checkpoints: tuple[Path, ...] = argument("CHECKPOINTS...")
    author: str | None = option(None, "--author", help=AUTHOR_HELP)
    license: str | None = option(None, "--license", help=LICENSE_HELP)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Print what data sets hold."""

    datasets: tuple[str, ...] = argument("DATASET...")
    spec: str = option(DEFAULT_SPEC, "-s", "--spec", help="Network that lines must be wide enough for.")
    padding: int = option(
        16, "--pad", minimum=0, maximum=10_000, help="Columns of padding left and right of a line, in pixels."
    )
    verify: bool = option(False, "--verify", help="Read everything and check every checksum.")
    json: bool = option(False, "--json", help="Print JSON.")


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Prove from the ledger of a run that every line was trained on exactly once an epoch."""

    run: tuple[Path, ...] = argument("RUN")
    epoch: int | None = option(None, "--epoch", minimum=0, help="This epoch only, counted from 0.")
    json: bool = option(False, "--json", help="Print JSON.")


SECTIONS: dict[str, type] = {
    "compile": Compile,
    "train": Train,
    "test": Test,
    "pretrain": Pretrain,
    "convert": Convert,
    "inspect": Inspect,
    "ledger": Ledger,
    "launch": AnyLaunch,
}

KRAKEN_SECTIONS = frozenset({"segtrain", "segtest", "rotrain", "roadd", "publish"})
"""Sections of kraken's experiment files for commands that are not ours; read past, never refused."""
