"""The time limit of a launch whose target has no scheduler that keeps it: all attempts share it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from distrib.config.launching import time_limit_minutes
from launchers.attempts import Cause
from launchers.history import read_history
from launchers.plan import LaunchPlan

TIME_IS_OVER: Final[Cause] = "time"
"""The cause of an attempt that was ended by it: another would have no time either."""


def seconds_left(plan: LaunchPlan) -> float | None:
    """Seconds until the time limit of a plan, counted from its launch; None without a limit."""
    if plan.options.time is None:
        return None
    limit = 60.0 * time_limit_minutes(plan.options.time)
    try:
        launched = datetime.fromisoformat(str(read_history(plan.run_dir).launch["time"]))
    except (KeyError, ValueError):  # not on record: it begins with this attempt
        return limit
    return limit - (datetime.now(timezone.utc) - launched.astimezone(timezone.utc)).total_seconds()


def time_over(plan: LaunchPlan) -> str:
    """The sentence for an attempt that has met the limit."""
    return (
        f"The time limit of the launch (--time {plan.options.time}) is over; what was saved stays, and the "
        "same launch with more time goes on from there."
    )
