"""The options of `ketos train` and `ketos pretrain`: kraken 7's, and after them ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from distrib.config.choices import (
    AUTHOR_HELP,
    BASE_DIR_HELP,
    BATCH_PIXELS_HELP,
    CACHE_DIR_HELP,
    CACHE_SIZE_HELP,
    DATA_FORMAT_HELP,
    DEFAULT_SPEC,
    LICENSE_HELP,
    NORMALIZATION_HELP,
    REORDER_HELP,
    WHITESPACE_HELP,
    BaseDirection,
    DataFormat,
    LineTypeName,
    Normalization,
    OptimizerName,
    QuitMode,
    ResizeMode,
    ScheduleName,
    StrategyName,
    WeightsFormat,
)
from distrib.config.fields import argument, option


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What train and pretrain share; the class attributes that differ are set again below."""

    command: ClassVar[str] = ""
    """The command whose options these are, and the section of the experiment file."""

    warmup_unit: ClassVar[Literal["steps", "samples"]] = "steps"
    """What ``--warmup`` counts."""

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
        1.0,
        "-F",
        "--freq",
        above=0.0,
        help="Epochs between validations, a whole number or a fraction; of fractions the nearest that leaves "
        "an epoch a whole number of validations.",
    )
    quit: QuitMode = option(
        "early",
        "-q",
        "--quit",
        help="When to stop: early, when the score stalls; fixed, after --epochs; aneal, when it stalls, "
        "after cooling the learning rate down once.",
    )
    epochs: int = option(-1, "-N", "--epochs", minimum=-1, help="Epochs to train for; -1: no limit.")
    min_epochs: int = option(0, "--min-epochs", minimum=0, help="Epochs before early stopping may stop.")
    lag: int = option(
        10,
        "--lag",
        minimum=1,
        help="Validations without improvement before stopping; aneal cools for as many.",
    )
    min_delta: float = option(
        0.0, "--min-delta", minimum=0.0, help="Smallest improvement that counts for stopping."
    )
    optimizer: OptimizerName = option("AdamW", "--optimizer", help="Optimizer.")
    lrate: float = option(1e-3, "-r", "--lrate", above=0.0, help="Learning rate.")
    momentum: float = option(
        0.9, "-m", "--momentum", minimum=0.0, help="Momentum; the first beta of Adam, AdamW and Lamb."
    )
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
        10,
        "--cos-max",
        minimum=1,
        help="Epoch at which cosine is lowest, and stays; epochs between warm restarts.",
    )
    cos_min_lr: float = option(
        1e-6,
        "--cos-min-lr",
        minimum=0.0,
        help="Lowest learning rate of the cosine schedules and of --quit aneal.",
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
    format_type: DataFormat = option("xml", "-f", "--format-type", help=DATA_FORMAT_HELP)
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
        help=BATCH_PIXELS_HELP,
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
    cache_dir: Path | None = option(None, "--cache-dir", help=CACHE_DIR_HELP)
    cache_size: str = option("20G", "--cache-size", metavar="SIZE", help=CACHE_SIZE_HELP)
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
    author: str | None = option(None, "--author", help=AUTHOR_HELP)
    license: str | None = option(None, "--license", help=LICENSE_HELP)
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
    normalization: Normalization | None = option(None, "-u", "--normalization", help=NORMALIZATION_HELP)
    normalize_whitespace: bool = option(
        True,
        "-n",
        "--normalize-whitespace",
        off=("--no-normalize-whitespace",),
        help=WHITESPACE_HELP,
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
    bidi_reordering: bool = option(True, "--reorder", off=("--no-reorder",), help=REORDER_HELP)
    base_dir: BaseDirection = option("auto", "--base-dir", help=BASE_DIR_HELP)
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
    warmup_unit: ClassVar[Literal["steps", "samples"]] = "samples"

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
        0.1, "-lt", "--logit-temp", minimum=0.01, help="Temperature of the contrastive loss."
    )
    negatives: Literal["line", "all"] = option(
        "line",
        "--negatives",
        help="Where negative samples come from: the line's own columns, or those of all lines of a batch at "
        "all processes.",
    )
