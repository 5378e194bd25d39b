"""What every target can do with a plan."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

from distrib.config.launching import Target
from launchers.plan import LaunchPlan
from launchers.states import Job


class Executor(Protocol):
    """The module ``executor`` of a target."""

    def check(self, plan: LaunchPlan) -> None:
        """Raise InputError where the plan asks for what is not there, as far as that can be known before."""

    def dry_run(self, plan: LaunchPlan) -> str:
        """Exactly what would run."""

    def run_here(self, plan: LaunchPlan, *, echo: Callable[[str], None], followed: bool) -> int:
        """Run the agent in this process until the end; the exit code. ``followed``: rank zero is shown."""


def executor_of(target: Target) -> Executor:
    """The executor of a target; what it needs is imported only now."""
    return cast(Executor, import_module(f"launchers.{target}.executor"))


def job_of(plan: LaunchPlan) -> Job | None:
    """The job of a plan as the module ``job`` of its target knows it; None where it knows none."""
    return cast("Job | None", import_module(f"launchers.{plan.target}.job").find(plan))
