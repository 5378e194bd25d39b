"""The driver of a detached launch on Ray: ``python -m launchers.ray RUN_DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

from launchers.ray.executor import run_here
from launchers.standalone import run_alone

if __name__ == "__main__":
    sys.exit(run_alone(lambda: Path(sys.argv[1]), run_here))
