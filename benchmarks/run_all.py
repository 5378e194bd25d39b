"""Run every benchmark; options are handed on: `--kraken PATH_TO_KETOS`, `--data`, `--repeat`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "compile.py",
    "delivery.py",
    "order.py",
    "augmentation.py",
    "loader.py",
    "micro_batches.py",
    "scale.py",
    "training.py",
    "accuracy.py",
    "gains.py",
    "pretraining.py",
    "checkpoint_stall.py",
    "save_in_training.py",
    "kill_drill.py",
)

for script in SCRIPTS:
    subprocess.run([sys.executable, str(Path(__file__).parent / script), *sys.argv[1:]], check=True)
