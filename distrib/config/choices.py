"""What options choose from, and the words of those that several commands have."""

from __future__ import annotations

from typing import Literal

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

FORMAT_HELP = (
    "Format of the data: ALTO or PageXML files (xml detects which), path for line images with a .gt.txt "
    "beside each"
)
DATA_FORMAT_HELP = FORMAT_HELP + ", binary for compiled data sets."
BASE_DIR_HELP = "Base text direction; auto takes what the ground truth states, else each line's own."
REORDER_HELP = "Reorder code points to display order."
NORMALIZATION_HELP = "Unicode normalization of the ground truth."
WHITESPACE_HELP = "Normalize Unicode whitespace in the ground truth."
AS_TRAINED = " By default as the model was trained."
BATCH_PIXELS_HELP = "Most pixels, padding included, that a process computes on at once; 0: any."
CACHE_DIR_HELP = "Folder on a disk of this machine for remote shards and for lines once normalized."
AUTHOR_HELP = "Author named in the exported weights file."
LICENSE_HELP = "Licence named in the exported weights file, such as CC-BY-4.0."
CACHE_SIZE_HELP = "Most bytes kept in --cache-dir, with K, M or G."
