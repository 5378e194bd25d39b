"""What sbatch says when it takes no job, in a sentence that names the option."""

from __future__ import annotations

import os
import re
from typing import Final

from distrib.config.launching import SlurmLaunch
from distrib.errors import InputError
from launchers.slurm.environment import for_sbatch
from launchers.slurm.watcher import Answer, ask, no_answer

_REFUSALS: Final = (
    (
        r"[Ii]nvalid partition",
        "--partition-name {partition_name}: the cluster has no such partition; see sinfo.",
    ),
    (
        r"Invalid account|account/partition combination",
        "--account {account}: SLURM does not let you use it here; `sacctmgr show user $USER withassoc` lists "
        "yours.",
    ),
    (r"Invalid qos", "--qos {qos}: SLURM does not let you use it here; `sacctmgr show qos` lists them."),
    (
        r"Invalid feature",
        "--constraint {constraint}: no node has such features; `sinfo -o '%N %f'` lists them.",
    ),
    (
        r"reservation is invalid",
        "--reservation {reservation}: there is none; see `scontrol show reservation`.",
    ),
    (r"Invalid node name", "--exclude {exclude}: names nodes that the cluster has not; see `sinfo -N`."),
    (
        r"Invalid --time|time limit is invalid",
        "--time {time}: the partition does not allow it; see `sinfo -o '%P %l'`.",
    ),
    (
        r"[Ii]nvalid generic resource|Invalid GRES",
        "--gpus-per-node {gpus_per_node}: SLURM knows no GPUs here; see `sinfo -o '%N %G'`.",
    ),
)


_OPTIONS: Final = re.compile(
    r"(un|not )recognized option|invalid option|Invalid --|[Ii]nvalid .*specification"
)


def check_script(text: str, options: SlurmLaunch) -> None:
    """Have sbatch look at a script without taking it; InputError where it would never do so.

    It also finds fault with jobs that could not start today, as with nodes that are being mended: those wait.
    """
    answer = ask("sbatch", "--test-only", environ=for_sbatch(os.environ), text=text)
    if answer.code != 0 and (answer.silent or _known(answer) or _OPTIONS.search(answer.err)):
        raise refused(answer, options)


def refused(answer: Answer, options: SlurmLaunch) -> InputError:
    """The error for a job that sbatch has not taken; what is not known here is quoted whole."""
    if answer.silent:
        return no_answer(answer.complaint)
    sentence = _known(answer)
    if sentence is None:
        return InputError(f"sbatch does not take the job: {answer.complaint}")
    values = {key: "(none)" if value is None else value for key, value in vars(options).items()}
    return InputError(f"{sentence.format_map(values)} (sbatch: {answer.complaint})")


def _known(answer: Answer) -> str | None:
    return next((sentence for pattern, sentence in _REFUSALS if re.search(pattern, answer.err)), None)
