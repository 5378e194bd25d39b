"""Agents that are programs of their own: they print what they decide, and end with the code of the run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from distrib.errors import KetosError
from launchers.plan import LaunchPlan, read_plan


class RunPlan(Protocol):
    """Runs a plan in this process until its end."""

    def __call__(self, plan: LaunchPlan, *, echo: Callable[[str], None]) -> int:
        """The exit code of the run."""


def run_alone(run_dir: Callable[[], Path], run: RunPlan) -> int:
    """Run the plan in a run directory; the exit code, an error being printed as one sentence."""
    try:
        return run(read_plan(run_dir()), echo=partial(print, flush=True))
    except KetosError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
