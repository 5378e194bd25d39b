"""What each machine of an attempt must have, and what its processes are told about their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distrib import __version__
from distrib.config.sizes import parse_size
from launchers.attempts import Attempt
from launchers.plan import LaunchPlan


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine says of itself: where Ray has it, and what its keeper found there."""

    node_id: str
    address: str
    port: int
    host: str
    python: str
    ketos: str
    seen: str | None
    writable: bool


def machine_needs(plan: LaunchPlan) -> dict[str, float]:
    """The resources of one machine of a plan, in Ray's names; memory in bytes."""
    options = plan.options
    needs = {"CPU": float((options.cpus_per_proc or 1) * plan.processes_per_node)}
    if options.gpus_per_node:
        needs["GPU"] = float(options.gpus_per_node)
    if options.mem is not None:
        needs["memory"] = float(parse_size(options.mem, option="--mem"))
    return needs


def shown_needs(needs: Mapping[str, float]) -> str:
    """``4 CPUs, 1 GPU and 8.0 GB of memory``."""
    parts = []
    for name, amount in needs.items():
        if name == "memory":
            parts.append(f"{amount / 1e9:.1f} GB of memory")
        else:
            parts.append(f"{amount:g} {name}{'' if amount == 1 else 's'}")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def difference(machines: Sequence[Machine], plan: LaunchPlan, nonce: str) -> str | None:
    """The sentence for machines on which the run cannot work, None where all is well."""
    blind = [machine.host for machine in machines if machine.seen != nonce or not machine.writable]
    if blind:
        return (
            f"{plan.run_dir} is not the same folder on {_listed(blind)} as here, or cannot be written to "
            "there; give a run directory on a file system that all machines share."
        )
    for machine in machines:
        if machine.ketos != __version__:
            return (
                f"{plan.python} has ketos {machine.ketos} on {machine.host} and {__version__} here; install "
                "the same version everywhere."
            )
        if machine.python != machines[0].python:
            return (
                f"{plan.python} is Python {machine.python} on {machine.host} and {machines[0].python} on "
                f"{machines[0].host}; install the same everywhere."
            )
    return None


def missing(plan: LaunchPlan, host: str, problem: Mapping[str, Any]) -> str:
    """The sentence for a machine on which the keeper could not be started."""
    path, reason = problem.get("path"), str(problem.get("reason")).lower()
    remedy = "use paths that all machines have"
    if path == str(plan.folder):
        remedy = "launch from a folder that all machines share"
    elif path == plan.python:
        remedy = "install Python and ketos-distrib at the same place everywhere"
    return f"{path} cannot be used on {host} ({reason}); {remedy}."


def not_installed(plan: LaunchPlan, host: str, said: Sequence[str]) -> str:
    """The sentence for an interpreter that cannot run the keeper, with the last line that it printed."""
    last = next((line.strip() for line in reversed(said) if line.strip()), "it printed nothing")
    return f"{plan.python} cannot run ketos on {host} ({last.rstrip('.')}); install ketos-distrib there."


def start_order(
    attempt: Attempt, plan: LaunchPlan, machines: Sequence[Machine], number: int
) -> dict[str, Any]:
    """What the keeper of machine ``number`` is to start: the ranks of a machine are consecutive."""
    processes = []
    for local_rank in range(plan.processes_per_node):
        rank = number * plan.processes_per_node + local_rank
        place = rank_variables(plan, machines=len(machines), number=number, local_rank=local_rank)
        meeting = {"MASTER_ADDR": machines[0].address, "MASTER_PORT": str(machines[0].port)}
        processes.append(
            {
                "rank": rank,
                "log": str(attempt.log(rank)),
                "environment": {**attempt.environment, **place, **meeting},
            }
        )
    return {"words": list(attempt.words), "folder": str(plan.folder), "processes": processes}


def rank_variables(plan: LaunchPlan, *, machines: int, number: int, local_rank: int) -> dict[str, str]:
    """Torchrun's variables for a process, without where to meet."""
    each = plan.processes_per_node
    return {
        "RANK": str(number * each + local_rank),
        "WORLD_SIZE": str(machines * each),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(each),
        "GROUP_RANK": str(number),
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(set(names)))
