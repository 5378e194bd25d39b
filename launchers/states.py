"""In what state a launched job is, in words that all targets share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

StateName = Literal["pending", "running", "requeued", "done", "failed", "cancelled", "lost", "unknown"]


@dataclass(frozen=True, kw_only=True)
class JobState:
    """A state, and a sentence that says more, such as why a job is still waiting."""

    name: StateName
    sentence: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.name in ("done", "failed", "cancelled", "lost")


class Job(Protocol):
    """A launched job as its target knows it, asked from any machine."""

    @property
    def id(self) -> str:
        """What the target calls it."""

    def state(self) -> JobState:
        """What the scheduler says; unknown where it cannot be asked."""

    def cancel(self) -> None:
        """Take it from the queue, or end what is left of it; harmless where it has ended."""
