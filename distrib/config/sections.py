"""The sections of an experiment: kraken 7's options with their names, short forms and defaults, and ours.

Each class is one section of the YAML file and one command of the command line; :class:`Globals` is the top
of both. Options that kraken does not have stand last in each class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from distrib.config.fields import argument, option
from distrib.config.launching import AnyLaunch

Precision = Literal[
    "transformer-engine",
    "transformer-engine-float16",
    "16-true",
    "16-mixed",
    "bf16-true",
    "bf16-mixed",
    "32-true",
    "64-true",
]
GroundTruthFormat = Literal["path", "xml", "alto", "page"]
DataFormat = Literal["path", "xml", "alto", "page", "binary"]
LineTypeName = Literal["baselines", "bbox"]
Normalization = Literal["NFD", "NFKD", "NFC", "NFKC"]
BaseDirection = Literal["L", "R", "auto"]
WeightsFormat = Literal["safetensors", "coreml"]
QuitMode = Literal["early", "fixed", "aneal"]
OptimizerName = Literal["Adam", "SGD", "RMSprop", "Lamb", "AdamW"]
ScheduleName = Literal[
    "constant", "1cycle", "exponential", "step", "reduceonplateau", "cosine", "cosine_warm_restarts"
]
ResizeMode = Literal["add", "union", "both", "new", "fail"]
StrategyName = Literal["auto", "ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_3", "fsdp"]

DEFAULT_SPEC = (
    "[1,120,0,1 Cr3,13,32 Do0.1,2 Mp2,2 Cr3,13,32 Do0.1,2 Mp2,2 Cr3,9,64 Do0.1,2 Mp2,2 "
    "Cr3,9,64 Do0.1,2 S1(1x0)1,3 Lbx200 Do0.1,2 Lbx200 Do0.1,2 Lbx200 Do]"
)

_FORMAT_HELP = (
    "Format of the data: ALTO or PageXML files (xml detects which), path for line images with a .gt.txt "
    "beside each"
)
_DATA_FORMAT_HELP = _FORMAT_HELP + ", binary for compiled data sets."
_BASE_DIR_HELP = "Base text direction; auto takes what the ground truth states, else each line's own."
_REORDER_HELP = "Reorder code points to display order."
_NORMALIZATION_HELP = "Unicode normalization of the ground truth."
_WHITESPACE_HELP = "Normalize Unicode whitespace in the ground truth."
_AS_TRAINED = " By default as the model was trained."
_BATCH_PIXELS_HELP = "Most pixels, padding included, that a process computes on at once; 0: any."
_CACHE_DIR_HELP = "Folder on a disk of this machine for remote shards and for lines once normalized."
_AUTHOR_HELP = "Author named in the exported weights file."
_LICENSE_HELP = "Licence named in the exported weights file, such as CC-BY-4.0."
_CACHE_SIZE_HELP = "Most bytes kept in --cache-dir, with K, M or G."


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
    format_type: GroundTruthFormat = option("xml", "-f", "--format-type", help=_FORMAT_HELP + ".")
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
class Learning:
    """What train and pretrain share; the class attributes that differ are set again below."""

    command: ClassVar[str] = ""
    """The command whose options these are, and the section of the experiment file."""

    def way_on(self, run: Path, *, saved: Path | None = None) -> str:
        """How the run in a directory, or of a checkpoint, goes on (from ``saved``), for messages."""
        start = "" if saved is None else f" from {saved.name}"
        return f"go on{start} with `ketos {self.command} --resume {run}`"

    arch: Literal["vgsl"] = option("vgsl", "--arch", help="Architecture family.")
    batch_size: int = option(
        1, "-B", "--batch-size", minimum=0, help="Lines of a batch of a process; 0: as --batch-pixels says."
    )
    padding: int = option(
        16, "--pad", minimum=0, maximum=10_000, help="Columns of padding left and right of a line, in pixels."
    )
    checkpoint_path: Path = option(Path("model"), "-o", "--output", help="Directory of the run.")
    weights_format: WeightsFormat = option(
        "safetensors", "--weights-format", help="Format of the exported weights file."
    )
    spec: str = option(DEFAULT_SPEC, "-s", "--spec", help="VGSL spec without output layer, which is added.")
    load: Path | None = option(None, "-i", "--load", help="Weights file or checkpoint to start from.")
    resume: Path | None = option(
        None,
        "--resume",
        metavar="FILE|DIR|auto",
        help="Checkpoint to continue from, or run directory to continue from its newest whole one; auto: the "
        "run in --output if there is one, else a new one.",
    )
    freq: float = option(
        1.0, "-F", "--freq", above=0.0, help="Epochs between validations, as a fraction or a whole number."
    )
    quit: QuitMode = option("early", "-q", "--quit", help="When to stop: early, when the score stalls; fixed, after --epochs; aneal, when it stalls, after cooling the learning rate down once.")
    epochs: int = option(-1, "-N", "--epochs", minimum=-1, help="Epochs to train for; -1: no limit.")
    min_epochs: int = option(0, "--min-epochs", minimum=0, help="Epochs before early stopping may stop.")
    lag: int = option(10, "--lag", minimum=1, help="Validations without improvement before stopping; aneal cools for as many.")
    min_delta: float = option(
        0.0, "--min-delta", minimum=0.0, help="Smallest improvement that counts for stopping."
    )
    optimizer: OptimizerName = option("AdamW", "--optimizer", help="Optimizer.")
    lrate: float = option(1e-3, "-r", "--lrate", above=0.0, help="Learning rate.")
    momentum: float = option(0.9, "-m", "--momentum", minimum=0.0, help="Momentum; the first beta of Adam, AdamW and Lamb.")
    weight_decay: float = option(0.0, "-w", "--weight-decay", minimum=0.0, help="Weight decay.")
    gradient_clip_val: float = option(
        1.0, "--gradient-clip-val", minimum=0.0, help="Largest norm of the gradient; 0: any."
    )
    accumulate_grad_batches: int = option(
        1, "--accumulate-grad-batches", minimum=1, help="Batches of one optimizer step."
    )
    warmup: int = option(0, "--warmup", minimum=0, help="Steps of rising learning rate.")
    schedule: ScheduleName = option("constant", "--schedule", help="Learning rate schedule.")
    gamma: float = option(
        0.1, "-g", "--gamma", above=0.0, help="Factor of step, exponential and reduceonplateau, at most 1."
    )
    step_size: int = option(
        10, "-ss", "--step-size", minimum=1, help="Validations between decays of exponential and step."
    )
    rop_patience: int = option(
        5, "--sched-patience", minimum=0, help="Validations that reduceonplateau waits."
    )
    cos_t_max: int = option(
        10, "--cos-max", minimum=1, help="Epoch at which cosine is lowest, and stays; epochs between warm restarts."
    )
    cos_min_lr: float = option(
        1e-6, "--cos-min-lr", minimum=0.0, help="Lowest learning rate of the cosine schedules and of --quit aneal."
    )
    partition: float = option(
        0.9, "-p", "--partition", above=0.0, maximum=1.0, help="Share of the lines trained on, without -e."
    )
    training_data: tuple[Path, ...] = option(
        (), "-t", "--training-data", help="File with paths of training data, one a line; repeatable."
    )
    evaluation_data: tuple[Path, ...] = option(
        (), "-e", "--evaluation-data", help="File with paths of validation data; replaces -p; repeatable."
    )
    format_type: DataFormat = option("xml", "-f", "--format-type", help=_DATA_FORMAT_HELP)
    linetype: LineTypeName | None = option(
        None,
        "--linetype",
        help="Line type; by default baselines for XML, bbox for path, as recorded for binary.",
    )
    augment: bool = option(False, "--augment", off=("--no-augment",), help="Augment the line images.")
    pl_logger: Literal["tensorboard", "wandb"] | None = option(
        None, "--logger", help="Where to log metrics besides the run directory."
    )
    log_dir: Path | None = option(None, "--log-dir", help="Directory of the logger's files.")
    legacy_polygons: bool = option(False, "--legacy-polygons", help="Use the line extractor of kraken < 5.")
    ground_truth: tuple[str, ...] = argument("[GROUND_TRUTH]...")
    split_by: Literal["line", "page"] = option(
        "line", "--split-by", help="Unit of the automatic split: lines, or whole pages."
    )
    global_batch_size: int | None = option(
        None,
        "--global-batch-size",
        minimum=1,
        help="Lines of an optimizer step over all processes; by default --batch-size times "
        "--accumulate-grad-batches times processes at first launch. Kept on resume.",
    )
    batch_pixels: int = option(
        0,
        "--batch-pixels",
        minimum=0,
        help=_BATCH_PIXELS_HELP,
    )
    shuffle_window: int = option(
        65_536, "--shuffle-window", minimum=1, help="Lines shuffled together; larger data sets go by windows."
    )
    max_bad_fraction: float = option(
        0.1, "--max-bad-fraction", minimum=0.0, maximum=1.0, help="Share of unusable lines that stops a run."
    )
    resume_anyway: bool = option(
        False, "--resume-anyway", help="Resume with changed data or batches, from the start of an epoch."
    )
    cache_dir: Path | None = option(None, "--cache-dir", help=_CACHE_DIR_HELP)
    cache_size: str = option("20G", "--cache-size", metavar="SIZE", help=_CACHE_SIZE_HELP)
    strategy: StrategyName = option(
        "auto",
        "--strategy",
        help="How processes share the work: ddp keeps all state in each; DeepSpeed's stages and fsdp divide "
        "it among them; auto is ddp.",
    )
    offload: Literal["none", "optimizer", "all"] = option(
        "none", "--offload", help="What DeepSpeed keeps in main memory: the optimizer, or parameters too."
    )
    save_steps: int = option(
        0, "--save-steps", minimum=0, help="Optimizer steps between checkpoints beside validations; 0: none."
    )
    save_minutes: float = option(
        0.0, "--save-minutes", minimum=0.0, help="Minutes between checkpoints beside validations; 0: none."
    )
    keep_best: int = option(10, "--keep-best", minimum=1, help="Checkpoints kept for their score.")
    keep_last: int = option(2, "--keep-last", minimum=1, help="Newest checkpoints kept besides.")
    max_bad_steps: int = option(
        10,
        "--max-bad-steps",
        minimum=1,
        help="Steps in a row without a finite loss and gradient that stop a run; such steps change nothing.",
    )
    steal_lease: bool = option(
        False, "--steal-lease", help="Take over the run directory of a run that gives no sign of life."
    )
    author: str | None = option(None, "--author", help=_AUTHOR_HELP)
    license: str | None = option(None, "--license", help=_LICENSE_HELP)
    lrate_scaling: Literal["none", "sqrt", "linear"] = option(
        "none",
        "--lrate-scaling",
        help="Multiply --lrate by how many times --batch-size a step's lines are, or by the root of that.",
    )
    augment_strength: float = option(
        1.0, "--augment-strength", minimum=0.0, maximum=3.0, help="How far --augment goes; 1: as is usual."
    )


@dataclass(frozen=True, kw_only=True)
class Train(Learning):
    """Train a recognition model."""

    command: ClassVar[str] = "train"

    freeze_backbone: int = option(
        0, "--freeze-backbone", minimum=0, help="Samples during which only the last layer learns."
    )
    normalization: Normalization | None = option(None, "-u", "--normalization", help=_NORMALIZATION_HELP)
    normalize_whitespace: bool = option(
        True,
        "-n",
        "--normalize-whitespace",
        off=("--no-normalize-whitespace",),
        help=_WHITESPACE_HELP,
    )
    codec: dict[str, Any] | Path | None = option(
        None, "-c", "--codec", metavar="FILE", help="JSON file of a codec: character to labels."
    )
    resize: ResizeMode = option(
        "fail",
        "--resize",
        help="What to do where the alphabets of data and loaded model differ: union adds characters, new "
        "keeps only those of the data, fail stops (add and both are old names of union and new).",
    )
    bidi_reordering: bool = option(True, "--reorder", off=("--no-reorder",), help=_REORDER_HELP)
    base_dir: BaseDirection = option("auto", "--base-dir", help=_BASE_DIR_HELP)
    ema: float = option(
        0.0,
        "--ema",
        minimum=0.0,
        maximum=0.99999,
        help="Validate and export an exponential moving average of the weights with this decay; 0: none.",
    )
    shortcut: float = option(
        0.0,
        "--shortcut",
        minimum=0.0,
        maximum=1.0,
        help="Weight of a second CTC loss straight on the feature map before the recurrent layers; 0: none.",
    )
    span_masks: float = option(
        0.0,
        "--span-masks",
        minimum=0.0,
        maximum=0.9,
        help="Share of the feature map's columns hidden from the recurrent layers in training, in spans.",
    )
    label_smoothing: float = option(
        0.0,
        "--label-smoothing",
        minimum=0.0,
        maximum=0.5,
        help="Share of the loss that asks for equal probabilities of all labels in place of CTC; 0: none.",
    )
    log_images: int = option(
        8, "--log-images", minimum=0, help="Validation lines shown with truth and prediction by --logger."
    )


@dataclass(frozen=True, kw_only=True)
class Pretrain(Learning):
    """Pretrain a model on line images without transcriptions."""

    command: ClassVar[str] = "pretrain"

    batch_size: int = option(64, "-B", "--batch-size", minimum=1, help="Lines of a batch.")
    min_epochs: int = option(100, "--min-epochs", minimum=0, help="Epochs before early stopping may stop.")
    lrate: float = option(1e-6, "-r", "--lrate", above=0.0, help="Learning rate.")
    weight_decay: float = option(0.01, "-w", "--weight-decay", minimum=0.0, help="Weight decay.")
    warmup: int = option(32000, "--warmup", minimum=0, help="Samples of rising learning rate.")
    schedule: ScheduleName = option("cosine", "--schedule", help="Learning rate schedule.")
    cos_t_max: int = option(
        100, "--cos-max", minimum=1, help="Epoch of the lowest learning rate of cosine schedules."
    )
    cos_min_lr: float = option(
        1e-7, "--cos-min-lr", minimum=0.0, help="Lowest learning rate of cosine schedules."
    )
    mask_width: int = option(
        4, "-mw", "--mask-width", minimum=1, help="Width of a mask in columns of the masked tensor."
    )
    mask_prob: float = option(
        0.5,
        "-mp",
        "--mask-probability",
        minimum=0.0,
        maximum=1.0,
        help="Probability that a mask starts at a column.",
    )
    num_negatives: int = option(
        100, "-nn", "--num-negatives", minimum=1, help="Negative samples of the contrastive loss."
    )
    logit_temp: float = option(
        0.1, "-lt", "--logit-temp", above=0.0, help="Temperature of the contrastive loss."
    )
    negatives: Literal["line", "all"] = option(
        "line",
        "--negatives",
        help="Where negative samples come from: the line's own columns, or those of all lines of a batch at "
        "all processes.",
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
    format_type: DataFormat = option("xml", "-f", "--format-type", help=_DATA_FORMAT_HELP)
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
        help="Columns of padding left and right of a line, in pixels." + _AS_TRAINED,
    )
    bidi_reordering: bool | None = option(
        None, "--reorder", off=("--no-reorder",), help=_REORDER_HELP + _AS_TRAINED
    )
    base_dir: BaseDirection | None = option(None, "--base-dir", help=_BASE_DIR_HELP + _AS_TRAINED)
    normalization: Literal["NFD", "NFKD", "NFC", "NFKC", "none"] | None = option(
        None, "-u", "--normalization", help=_NORMALIZATION_HELP + _AS_TRAINED
    )
    normalize_whitespace: bool | None = option(
        None,
        "-n",
        "--normalize-whitespace",
        off=("--no-normalize-whitespace",),
        help=_WHITESPACE_HELP + _AS_TRAINED,
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
    batch_pixels: int = option(0, "--batch-pixels", minimum=0, help=_BATCH_PIXELS_HELP)
    cache_dir: Path | None = option(None, "--cache-dir", help=_CACHE_DIR_HELP)
    cache_size: str = option("20G", "--cache-size", metavar="SIZE", help=_CACHE_SIZE_HELP)


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert checkpoints and weights files."""

    output: Path = option(Path("model.safetensors"), "-o", "--output", help="Weights file to write.")
    weights_format: WeightsFormat = option(
        "safetensors", "--weights-format", help="Format of the weights file."
    )
    checkpoints: tuple[Path, ...] = argument("CHECKPOINTS...")
    author: str | None = option(None, "--author", help=_AUTHOR_HELP)
    license: str | None = option(None, "--license", help=_LICENSE_HELP)


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
