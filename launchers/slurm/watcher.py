"""What the scheduler says of jobs, asked by its programs; no accounting database is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from distrib.errors import InputError, RunError

ANSWER_SECONDS: Final = 60.0
"""A busy controller lets its clients wait; they give up by themselves after some ten seconds."""
_MOMENT: Final = 2.0

_SILENT = re.compile(
    r"Unable to contact slurm controller|Unable to establish controller machine|"
    r"Connection (refused|timed out)|Could not establish a configuration source|"
    r"Socket timed out|Zero Bytes were transmitted",
    re.I,
)
_QUEUED_AGAIN: Final = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
_UNLIMITED: Final = ("UNLIMITED", "infinite", "Partition_Limit", "NONE", "n/a")
_DURATION = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a program of SLURM has printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Its message in one line, without the program's name before it."""
        lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line) for line in self.err.splitlines()]
        return (
            "; ".join(line for line in lines if line.strip()) or self.out.strip() or f"exit code {self.code}"
        )

    @property
    def silent(self) -> bool:
        """Whether the controller did not answer."""
        return self.code != 0 and _SILENT.search(self.err) is not None


def ask(*words: str, environ: Mapping[str, str] | None = None, text: str | None = None) -> Answer:
    """Run a program of SLURM, ``text`` being its standard input.

    Raises InputError where this machine has no such program, RunError where it does not come back.
    """
    try:
        done = subprocess.run(  # noqa: S603
            words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            input=text,
            env={**(os.environ if environ is None else environ), "SLURM_TIME_FORMAT": "standard"},
            timeout=ANSWER_SECONDS,
        )
    except FileNotFoundError:
        raise missing(words[0]) from None
    except subprocess.TimeoutExpired:
        raise RunError(f"`{words[0]}` has not answered in {ANSWER_SECONDS:.0f} s; try again later.") from None
    return Answer(code=done.returncode, out=done.stdout, err=done.stderr)


def missing(program: str) -> InputError:
    """The sentence for a machine without a program of SLURM."""
    return InputError(
        f"`{program}` is not on PATH; launch from a login node of the cluster (perhaps after "
        "`module load slurm`), or run on this machine with: ketos launch local"
    )


def no_answer(complaint: str) -> InputError:
    """The sentence for a controller that is not there."""
    return InputError(
        f"SLURM's controller does not answer ({complaint}); look with `scontrol ping`, and launch again when "
        "it is up."
    )


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """A job as its controller describes it. Times are in seconds; ``limit`` is None without a limit."""

    id: str
    state: str
    reason: str
    ended: bool
    preempted: bool
    restarts: int
    run_time: int
    limit: int | None
    batch: bool
    may_requeue: bool
    nodes: str

    def requeued(self, restarts: int | None = None) -> bool:
        """Whether it is queued again, having been started ``restarts`` times before where that is known.

        A job whose processes are still ending shows that by having no end, or one to come.
        """
        if self.state in _QUEUED_AGAIN or (restarts is not None and self.restarts > restarts):
            return True
        return self.state == "COMPLETING" and not self.ended

    @property
    def timed_out(self) -> bool:
        """Whether it has come to its time limit."""
        return self.state == "TIMEOUT" or (self.limit is not None and self.run_time >= self.limit)

    def cancelled(self, restarts: int) -> bool:
        """Whether somebody wanted its end, as far as the controller tells while its processes are ending."""
        if self.state == "CANCELLED":
            return True
        unasked = self.preempted or self.timed_out or self.requeued(restarts)
        return self.state == "COMPLETING" and not unasked


def was_cancelled(job: str, restarts: int) -> bool:
    """Whether somebody wanted the end of this ending job, which had been started ``restarts`` times before.

    Where a node has failed the controller takes a moment to queue the job again, and it looks the same.
    """
    deadline = time.monotonic() + _MOMENT
    while True:
        facts = show_job(job)
        if facts is None or not facts.cancelled(restarts):
            return False
        if facts.state == "CANCELLED" or time.monotonic() > deadline:
            return True
        time.sleep(_MOMENT / 10)


def show_job(job: str) -> JobFacts | None:
    """The job as the controller knows it; None where it has forgotten it or does not answer."""
    try:
        answer = ask("scontrol", "show", "job", "-o", job)
    except (RunError, InputError):
        return None
    return facts_of(answer.out) if answer.code == 0 else None


def facts_of(text: str) -> JobFacts | None:
    """The first job in what ``scontrol show job -o`` prints."""
    line = text.strip().partition("\n")[0]
    # A job's name stands before its user and may hold anything; its command stands after all that counts.
    after = re.split(r" UserId=\S+\(\d+\) ", line, maxsplit=1)[-1]
    fields = dict(reversed(re.findall(r"(?:^|\s)([A-Z]\w+)=(\S*)", after)))
    if "JobState" not in fields:
        return None
    number = re.match(r"JobId=(\d+)", line)
    return JobFacts(
        id="" if number is None else number[1],
        state=fields["JobState"],
        reason=fields.get("Reason", ""),
        ended=_is_past(fields.get("EndTime", "Unknown")),
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown"),
        restarts=int(fields.get("Restarts", "0")),
        run_time=duration(fields.get("RunTime", "0")) or 0,
        limit=duration(fields.get("TimeLimit", "UNLIMITED")),
        batch=fields.get("BatchFlag", "0") != "0",
        may_requeue=fields.get("Requeue", "0") != "0",
        nodes=fields.get("NodeList", ""),
    )


def accounted_state(job: str) -> str:
    """The state of a job that the controller has forgotten; empty where no database knows it either."""
    try:
        answer = ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "State")
    except (RunError, InputError):
        return ""
    words = answer.out.split()
    return words[0] if answer.code == 0 and words else ""


def duration(text: str) -> int | None:
    """Seconds of a time as SLURM prints it, ``D-HH:MM:SS``, ``HH:MM:SS`` or ``MM:SS``; None for no limit."""
    found = _DURATION.fullmatch(text)
    if text in _UNLIMITED or found is None:
        return None
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = [0, 0, *numbers][-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _is_past(moment: str) -> bool:
    """Whether a time as SLURM prints it, by the clock and zone of this machine, has come."""
    try:
        return datetime.fromisoformat(moment).timestamp() <= time.time() + _MOMENT
    except ValueError:
        return False


def require_programs(programs: Sequence[str]) -> None:
    """Raises InputError naming the first of these programs that is not on PATH."""
    for program in programs:
        if shutil.which(program) is None:
            raise missing(program)
