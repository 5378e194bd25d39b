"""A local launch as others see it: by its files alone."""

from __future__ import annotations

from launchers.plan import LaunchPlan
from launchers.states import JobState


class LocalJob:
    """The launch of a plan on some machine; what is known of it stands in its run directory."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._plan = plan

    @property
    def id(self) -> str:
        """There is no scheduler to give it a name."""
        return self._plan.name

    def state(self) -> JobState:
        """There is nobody to ask but the files."""
        return JobState(name="unknown")

    def cancel(self) -> None:
        """The agent finds the wish in the run directory."""


def find(plan: LaunchPlan) -> LocalJob:
    """The job of a plan."""
    return LocalJob(plan)
