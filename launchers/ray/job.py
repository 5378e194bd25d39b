"""A run on Ray as others see it: by its files, and by the cluster's dashboard where that can be reached."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from distrib.errors import InputError
from distrib.files import write_error, written_whole
from launchers.places import launch_folder
from launchers.plan import LaunchPlan
from launchers.states import JobState, StateName

CONNECT_SECONDS: Final = 5.0
"""How long an address has to answer."""
_STATES: dict[str, StateName] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "cancelled",
}


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """Where a run was started: the id of its Ray job, None for a driver started by hand, the cluster's
    dashboard (URL) and its own address (host:port) where known."""

    job: str | None
    dashboard: str | None
    address: str | None


class RayJob:
    """The newest launch of a plan on Ray."""

    def __init__(self, plan: LaunchPlan, record: JobRecord) -> None:
        self._plan, self._record = plan, record

    @property
    def id(self) -> str:
        """What Ray calls the job; the name of the launch where its driver was started by hand."""
        return self._record.job or self._plan.name

    def state(self) -> JobState:
        """What the dashboard says; unknown where there is no job or nobody to ask."""
        if self._record.job is None or self._record.dashboard is None:
            return JobState(name="unknown")
        try:
            info = client_of(self._record.dashboard).get_job_info(self._record.job)
        except (InputError, ConnectionError, RuntimeError, OSError) as error:
            return JobState(name="unknown", sentence=f"The Ray cluster cannot be asked: {first_line(error)}")
        return JobState(name=_STATES.get(str(info.status), "unknown"), sentence=str(info.message or ""))

    def cancel(self) -> None:
        """Take a job that still waits from the queue; a running one finds the wish in its run directory.

        `ray job stop` would kill its driver after a few seconds, before it has put the end on record.
        """
        if (
            self._record.job is not None
            and self._record.dashboard is not None
            and self.state().name == "pending"
        ):
            client_of(self._record.dashboard).stop_job(self._record.job)


def find(plan: LaunchPlan) -> RayJob | None:
    """The job of a plan, None where it was never started."""
    try:
        values = json.loads(record_file(plan).read_bytes())
        record = JobRecord(**{name: values.get(name) for name in ("job", "dashboard", "address")})
    except (OSError, ValueError, AttributeError):
        return None
    return RayJob(plan, record)


def record_file(plan: LaunchPlan) -> Path:
    """Where the newest launch of a plan was started."""
    return launch_folder(plan.run_dir) / "ray.json"


def write_record(plan: LaunchPlan, record: JobRecord) -> None:
    """Keep where a plan was started. Raises KetosError with a sentence where that cannot be."""
    path = record_file(plan)
    try:
        with written_whole(path) as file:
            file.write(json.dumps(asdict(record)).encode())
    except OSError as error:
        raise write_error(path, error) from error


def client_of(dashboard: str) -> Any:
    """A client for the jobs of the cluster. Raises InputError where there is none at this address."""
    try:
        from ray.job_submission import JobSubmissionClient

        place = urlsplit(dashboard)
        # Ray would wait for minutes on a machine that does not answer.
        address = (place.hostname or "", place.port or (443 if place.scheme == "https" else 80))
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
        return JobSubmissionClient(dashboard)
    except (OSError, RuntimeError, ImportError, ValueError) as error:
        raise InputError(
            f"No Ray jobs can be submitted at {dashboard} ({first_line(error).rstrip('.')}); see that the "
            "cluster's dashboard runs there."
        ) from None


def first_line(error: Exception) -> str:
    """The first line of an error of Ray, which may have many; of the system, what it means."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
