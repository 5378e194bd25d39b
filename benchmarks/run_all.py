"""Run every benchmark; options are handed on: `--kraken PATH_TO_KETOS`, `--data`, `--repeat`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

for script in ("compile.py", "delivery.py", "training.py"):
    subprocess.run([sys.executable, str(Path(__file__).parent / script), *sys.argv[1:]], check=True)
