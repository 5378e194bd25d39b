"""The driver of a detached launch on Ray: ``python -m launchers.ray RUN_DIR``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from distrib.errors import KetosError
from launchers.plan import read_plan
from launchers.ray.executor import run_here


def main(words: list[str]) -> int:
    """Run the plan in a run directory; the exit code of the run."""
    try:
        return run_here(read_plan(Path(words[0])), echo=partial(print, flush=True))
    except KetosError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
