"""The processes of an attempt as a step of the job: started by srun, watched, ended when that is wanted."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from distrib.errors import InputError, KetosError
from distrib.runtime.directory.endings import read_endings
from distrib.runtime.directory.lease import Lease
from distrib.runtime.directory.lease_file import lease_in_force
from launchers.attempts import Attempt, Cause, Outcome
from launchers.plan import LaunchPlan
from launchers.slurm.environment import for_srun
from launchers.slurm.environment import restarts as restarts_before
from launchers.slurm.watcher import was_cancelled
from launchers.stop import StopRequest

GRACE: Final = 120.0
"""Seconds that processes have to save and end before they are killed; SLURM's own patience is often less."""
_LOOK: Final = 0.25
_AFTER_KILL: Final = 60.0
_ASKED_TO_END: Final = tuple(
    code for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM) for code in (-number, 128 + number)
)

_EXITED = re.compile(r"error: [^:]+: tasks? ([\d,-]+): (.+?)\s*$")
_EXIT_CODE = re.compile(r"Exited with exit code (\d+)")
_NODE_FAILURE = re.compile(r"error: Node failure on (\S+)")
_NOT_LAUNCHED = re.compile(r"error: Task launch for \S+ failed on node (\S+): (.*)")
_NO_STEP = re.compile(r"error: Unable to (?:create step for|confirm allocation for) job \d+: (.*)")
_NO_SUCH_FILE = re.compile(r"error: execve\(\): (.+): (No such file or directory|Permission denied)")
_TOO_MUCH = re.compile(
    r"More processors requested|Memory required|node configuration|Invalid|cannot be satisfied"
)
_SIGNAL_NAMES: Final = {signal.strsignal(number) or "": -number for number in signal.Signals}


@dataclass
class SrunReport:
    """What srun has said of a step: codes by rank in the order in which they came, negative for signals;
    nodes that failed; why the step could not be started at all or on a node."""

    codes: dict[int, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    refused: str = ""
    unreached: str = ""


def srun_words(plan: LaunchPlan, attempt: Attempt, *, nodes: int, cpus_per_proc: int | None) -> list[str]:
    """The command line of srun for all processes of an attempt, neighbouring ranks on one node."""
    each = plan.processes_per_node
    # A log's name is a pattern to SLURM.
    log = str(attempt.folder).replace("%", "%%") + "/rank-%t.log"
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes * each}",
        f"--ntasks-per-node={each}",
        *([] if cpus_per_proc is None else [f"--cpus-per-task={cpus_per_proc}"]),
        "--distribution=block",
        "--mem=0",
        "--mpi=none",
        "--export=ALL",
        "--input=none",
        "--kill-on-bad-exit=1",
        "--unbuffered",
        "--open-mode=append",
        f"--chdir={plan.folder}",
        f"--output={log}",
        *attempt.words,
    ]


def read_report(text: str) -> SrunReport:
    """What srun has printed, understood."""
    report = SrunReport()
    for line in text.splitlines():
        if found := _EXITED.search(line):
            code = _code_of(found[2])
            for rank in _numbers(found[1]):
                report.codes.setdefault(rank, code)
        elif found := _NODE_FAILURE.search(line):
            report.lost.append(found[1])
        elif found := _NOT_LAUNCHED.search(line):
            report.unreached = f"node {found[1]} could not be reached ({found[2]})"
        elif found := _NO_STEP.search(line):
            report.refused = found[1]
    return report


def start_step(
    plan: LaunchPlan,
    attempt: Attempt,
    stop: StopRequest,
    *,
    job: str,
    nodes: int,
    cpus_per_proc: int | None,
    environ: Mapping[str, str],
) -> Outcome:
    """All processes of an attempt on the nodes of ``job``, until the last has ended."""
    wait_for_writer(plan.run_dir, stop, environ)
    printed = attempt.folder / "srun.log"
    with printed.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            srun_words(plan, attempt, nodes=nodes, cpus_per_proc=cpus_per_proc),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**for_srun(environ), **attempt.environment},
            # srun answers SIGTERM and SIGINT by killing its processes at once; they are to save.
            start_new_session=True,
        )
    _watch(process, stop, job)
    report = read_report(printed.read_text(errors="replace"))
    outcome = _outcome(plan, report, code=process.returncode, nodes=nodes)
    return _explained(outcome, attempt, stop, report, job=job, restarts=restarts_before(environ))


def wait_for_writer(run_dir: Path, stop: StopRequest, environ: Mapping[str, str]) -> None:
    """Return when no process of this very job, started by an earlier agent of it, holds the run directory.

    SLURM may start a job anew, or a second time, while processes of the first start still save.
    """
    while stop.reason is None:
        with suppress(OSError):
            found = lease_in_force(run_dir)
            if found is None or found.holder is None or found.holder.job != environ.get("SLURM_JOB_ID"):
                return
        try:
            # Watches for signs of life and gives the directory back: rank zero need not watch again.
            Lease.acquire(run_dir, environ=environ).release()
            return
        except InputError:
            time.sleep(_LOOK)
        except KetosError:
            return  # rank zero will say what is wrong with the directory


def _watch(process: subprocess.Popen[bytes], stop: StopRequest, job: str) -> None:
    """Wait for the end of srun, and bring it about when it is wanted."""
    told_at: float | None = None
    with ExitStack() as told:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_LOOK)
            if told_at is None and stop.reason is not None:
                told_at = time.monotonic()
                told.enter_context(_signalled_steps(job, "TERM"))
            elif told_at is not None and time.monotonic() - told_at > GRACE:
                told.enter_context(_signalled_steps(job, "KILL"))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_AFTER_KILL)
                process.kill()
                process.wait()


@contextmanager
def _signalled_steps(job: str, name: str) -> Iterator[None]:
    """Signal the processes of all steps of a job but the agent's, not waiting for scancel to return.

    It tries for a minute to signal a job that is ending, whose steps SLURM has told already.
    """
    with subprocess.Popen(  # noqa: S603
        ["scancel", f"--signal={name}", job],  # noqa: S607 - wherever the site has it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            process.kill()


def _outcome(plan: LaunchPlan, report: SrunReport, *, code: int, nodes: int) -> Outcome:
    processes = nodes * plan.processes_per_node
    if code == 0:
        return Outcome(code=0, codes=dict.fromkeys(range(processes), 0), nodes=nodes, processes=processes)
    first = next((each for each in report.codes.values() if each), code)
    lost = tuple(report.lost)
    return Outcome(code=first, codes=report.codes, lost=lost, nodes=nodes, processes=processes)


def _explained(
    outcome: Outcome, attempt: Attempt, stop: StopRequest, report: SrunReport, *, job: str, restarts: int
) -> Outcome:
    """The outcome with what only SLURM can know of its cause."""
    if outcome.code == 0:
        return outcome
    ending = outcome.code in _ASKED_TO_END or stop.signal is not None
    if ending and not report.lost and was_cancelled(job, restarts):
        return _because(outcome, "cancelled", f"Job {job} was cancelled (scancel).")
    if report.unreached:
        # A new allocation may be without that node.
        return _because(outcome, "preempted", f"The processes did not start: {report.unreached}.")
    if report.refused:
        grave = stop.signal is None and _TOO_MUCH.search(report.refused) is not None
        sentence = f"SLURM does not start the processes in this job ({report.refused})"
        if grave:
            return _because(outcome, "input", f"{sentence}; submit it with the resources that they need.")
        return _because(outcome, "preempted" if stop.signal is not None else "unexpected", f"{sentence}.")
    missing = _without_program(outcome, attempt)
    if missing:
        return _because(outcome, "input", missing)
    return outcome


def _because(outcome: Outcome, cause: Cause, sentence: str) -> Outcome:
    return dataclasses.replace(outcome, cause=cause, sentence=sentence)


def _without_program(outcome: Outcome, attempt: Attempt) -> str:
    """The sentence where a node has no such interpreter; srun says no more of it than exit code 2."""
    endings = read_endings(attempt.folder)
    silent = [rank for rank, code in outcome.codes.items() if code == 2 and rank not in endings]
    for rank in sorted(silent):
        with suppress(OSError), attempt.log(rank).open(errors="replace") as file:
            if found := _NO_SUCH_FILE.search(file.read(10_000)):
                return (
                    f"The node of process {rank} has no {found[1]} ({found[2].lower()}); install the same "
                    "environment on every node, or on a file system that all of them see."
                )
    return ""


def _code_of(words: str) -> int:
    if found := _EXIT_CODE.match(words):
        return int(found[1])
    return _SIGNAL_NAMES.get(words.removesuffix(" (core dumped)"), 1)


def _numbers(text: str) -> Iterator[int]:
    """The numbers in a list such as 0,2-4."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
