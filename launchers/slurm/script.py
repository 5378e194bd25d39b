"""The batch script of a launch, rendered by submitit; pure but for that import."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

from distrib.config.launching import SlurmLaunch, time_limit_minutes
from distrib.config.sizes import parse_size
from distrib.errors import InputError
from launchers.places import launch_folder
from launchers.plan import LaunchPlan
from launchers.programs import SAFE_PATH, module_words

_MIB: Final = 1 << 20
_ARRAY = re.compile(r"(?P<tasks>\d+(?:-\d+(?::\d+)?)?(?:,\d+(?:-\d+(?::\d+)?)?)*)?(?:%(?P<at_once>\d+))?")


def script(plan: LaunchPlan) -> str:
    """The batch script of a single run. Raises InputError without submitit."""
    words = [*_agent(plan), str(plan.run_dir)]
    return _script(plan, shlex.join(words), launch_folder(plan.run_dir) / "slurm-%j.log")


def sweep_script(plans: Sequence[LaunchPlan], directory: Path) -> str:
    """The batch script of a sweep, of which each task runs the plan of its number."""
    options = slurm_options(plans[0])
    tasks = array_tasks(options.array, len(plans))
    at_once = (options.array or "").partition("%")[2]
    array = ",".join(map(str, tasks)) if len(tasks) < len(plans) else f"0-{len(plans) - 1}"
    words = [*_agent(plans[0]), "--sweep", str(directory)]
    command = f'{shlex.join(words)} "$SLURM_ARRAY_TASK_ID"'
    return _script(
        plans[0], command, directory / "slurm-%A_%a.log", array=f"{array}%{at_once}" if at_once else array
    )


def array_tasks(text: str | None, runs: int) -> list[int]:
    """The runs that ``--array`` chooses, all without one. Raises InputError where there are no such runs."""
    found = _ARRAY.fullmatch(text or "")
    if found is None or found["at_once"] == "0":
        raise InputError(
            f"--array {text}: must be tasks such as 0-7, 0-7%2 or 1,3,5, or %2 for all, two at once."
        )
    if found["tasks"] is None:
        return list(range(runs))
    tasks: set[int] = set()
    for part in found["tasks"].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        tasks.update(range(int(first), int(last or first) + 1, int(step or 1) or 1))
    if not tasks or max(tasks) >= runs:
        raise InputError(f"--array {text}: the sweep has runs 0 to {runs - 1}; choose among them.")
    return sorted(tasks)


def _agent(plan: LaunchPlan) -> list[str]:
    variables = [f"{name}={value}" for name, value in SAFE_PATH.items()]
    return ["env", *variables, *module_words(plan.python, "launchers.slurm", "-u")]


def _script(plan: LaunchPlan, command: str, log: Path, *, array: str | None = None) -> str:
    options = slurm_options(plan)
    minutes = None if options.time is None else time_limit_minutes(options.time)
    memory = None if options.mem is None else -(-parse_size(options.mem, option="--mem") // _MIB)
    fewest = options.min_nodes
    further: dict[str, Any] = {
        # Only %j, %A and %a at the end of a log's name are patterns.
        "output": str(log.parent).replace("%", "%%") + "/" + log.name,
        "nodes": options.nodes if fewest in (None, options.nodes) else f"{fewest}-{options.nodes}",
        # To the processes, not to the agent. NCCL may use USR1 itself.
        "signal": f"USR2@{options.signal_before}",
        "requeue": True,
        "chdir": str(plan.folder),
    }
    text = submitit_slurm()._make_sbatch_string(
        # In its place, as a shell would not outlive the SIGTERM that the agent answers.
        command=f"exec {command}",
        folder=log.parent,
        job_name=plan.name,
        partition=options.partition_name,
        time=minutes,
        ntasks_per_node=plan.processes_per_node,
        cpus_per_task=options.cpus_per_proc,
        gpus_per_node=options.gpus_per_node or None,
        mem=None if memory is None else f"{memory}M",
        qos=options.qos,
        constraint=options.constraint,
        exclude=options.exclude,
        account=options.account,
        setup=_setup(options),
        wckey=None,
        stderr_to_stdout=True,
        use_srun=False,
        additional_parameters=further
        | {key: value for key, value in (("reservation", options.reservation), ("array", array)) if value},
    )
    return cast(str, text)


def _setup(options: SlurmLaunch) -> list[str] | None:
    # SLURM reads its lines up to the first command.
    lines = [f"#SBATCH {line.removeprefix('#SBATCH ')}" for line in options.sbatch_line]
    return [*lines, *options.setup] or None


def slurm_options(plan: LaunchPlan) -> SlurmLaunch:
    """The options of a plan for SLURM. Raises InputError where it is of another target."""
    if not isinstance(plan.options, SlurmLaunch):
        raise InputError(f"{plan.run_dir}: was launched on {plan.target}, not on slurm; launch it again.")
    return plan.options


def submitit_slurm() -> Any:
    """submitit's module for SLURM. Raises InputError where it is not installed."""
    if find_spec("submitit") is None:
        raise InputError("submitit is not installed; install it with: pip install 'ketos-distrib[slurm]'")
    import submitit.slurm.slurm

    return submitit.slurm.slurm
