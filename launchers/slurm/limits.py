"""What a cluster can give, asked before submission: SLURM lets many impossible jobs wait for ever."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from distrib.config.launching import SlurmLaunch, time_limit_minutes
from distrib.config.sizes import parse_size
from distrib.config.values import nearest
from distrib.errors import InputError
from launchers.slurm.environment import gpus_of
from launchers.slurm.watcher import Answer, ask, duration, no_answer

_FORMAT: Final = "%P|%a|%D|%c|%m|%G|%l"
_MIB: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """So many nodes of one kind, with the cores, MiB of memory and GPUs of each."""

    count: int
    cpus: int
    memory: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition: its nodes, its longest job in minutes, and whom it takes (None: any)."""

    name: str
    default: bool
    nodes: tuple[Nodes, ...]
    minutes: int | None = None
    most_nodes: int | None = None
    accounts: tuple[str, ...] | None = None
    qos: tuple[str, ...] | None = None

    @property
    def size(self) -> int:
        """Nodes of all kinds."""
        return sum(each.count for each in self.nodes)


def check_limits(options: SlurmLaunch, processes_per_node: int) -> None:
    """Raise InputError where the cluster can never give what is asked for, or does not answer."""
    nodes = _answered(ask("sinfo", "-a", "-h", "-e", "-o", _FORMAT))
    rules = _answered(ask("scontrol", "show", "partition", "-a", "-o"))
    sentence = refusal(options, processes_per_node, read_partitions(nodes, rules))
    if sentence is not None:
        raise InputError(sentence)


def read_partitions(nodes: str, rules: str) -> list[Partition]:
    """The partitions in what sinfo (in ``_FORMAT``) and ``scontrol show partition -o`` print."""
    kinds: dict[str, list[Nodes]] = {}
    facts: dict[str, tuple[bool, int | None]] = {}
    for line in nodes.splitlines():
        words = line.split("|")
        if len(words) != 7 or not words[2].isdecimal():
            continue
        name = words[0].rstrip("*")
        seconds = duration(words[6])
        facts[name] = (words[0].endswith("*"), None if seconds is None else seconds // 60)
        kinds.setdefault(name, []).append(
            Nodes(
                count=int(words[2]),
                cpus=_leading_number(words[3]),
                memory=_leading_number(words[4]),
                gpus=gpus_of(words[5]) if "gpu" in words[5] else 0,
            )
        )
    ruled = {}
    for line in rules.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        ruled[fields.get("PartitionName", "")] = fields
    return [
        Partition(
            name=name,
            default=facts[name][0],
            nodes=tuple(kinds[name]),
            minutes=facts[name][1],
            most_nodes=_limit(ruled.get(name, {}).get("MaxNodes", "UNLIMITED")),
            accounts=_allowed(ruled.get(name, {}).get("AllowAccounts", "ALL")),
            qos=_allowed(ruled.get(name, {}).get("AllowQos", "ALL")),
        )
        for name in kinds
    ]


def refusal(options: SlurmLaunch, processes_per_node: int, partitions: Sequence[Partition]) -> str | None:
    """Why no partition of those asked for can ever run such a job, in a sentence; None where one can."""
    if not partitions:
        return None
    known = {each.name: each for each in partitions}
    if options.partition_name is None:
        chosen = [each for each in partitions if each.default]
        if not chosen:
            return (
                "--partition-name: the cluster has no partition that jobs go to by themselves; give one of "
                f"{', '.join(sorted(known))}."
            )
    else:
        names = options.partition_name.split(",")
        for name in names:
            if name not in known:
                return (
                    f"--partition-name {name}: the cluster has no such partition{nearest(name, known)}; give "
                    f"one of {', '.join(sorted(known))}."
                )
        chosen = [known[name] for name in names]
    refusals = [_refused_by(each, options, processes_per_node) for each in chosen]
    return None if None in refusals else refusals[0]


def _refused_by(partition: Partition, options: SlurmLaunch, processes_per_node: int) -> str | None:
    where = f"partition {partition.name}"
    if partition.accounts is not None and options.account and options.account not in partition.accounts:
        taken = ", ".join(partition.accounts)
        return f"--account {options.account}: {where} does not take it; it takes {taken}."
    if partition.qos is not None and options.qos and options.qos not in partition.qos:
        return f"--qos {options.qos}: {where} does not take it; it takes {', '.join(partition.qos)}."
    wanted = options.min_nodes or options.nodes
    option = "--nodes" if options.min_nodes is None else "--min-nodes"
    most = min(partition.size, partition.most_nodes or partition.size)
    if wanted > most:
        return f"{option} {wanted}: {where} gives {most} at most; ask for fewer, or for another partition."
    minutes = None if options.time is None else time_limit_minutes(options.time)
    if minutes is not None and partition.minutes is not None and minutes > partition.minutes:
        return (
            f"--time {options.time}: jobs of {where} may last {partition.minutes} minutes; ask for less (a "
            "job that comes to its limit is queued again and goes on), or for another partition."
        )
    return _refused_by_nodes(partition, options, processes_per_node, wanted)


def _refused_by_nodes(
    partition: Partition, options: SlurmLaunch, processes_per_node: int, wanted: int
) -> str | None:
    memory = 0 if options.mem is None else -(-parse_size(options.mem, option="--mem") // _MIB)
    asked = (
        (f"--gpus-per-node {options.gpus_per_node}", options.gpus_per_node, "gpus", "GPUs"),
        (
            f"--cpus-per-proc {options.cpus_per_proc or 1} (for {processes_per_node} processes a node)",
            (options.cpus_per_proc or 1) * processes_per_node,
            "cpus",
            "cores",
        ),
        (f"--mem {options.mem}", memory, "memory", "MiB of memory"),
    )
    for option, number, attribute, unit in asked:
        able = sum(each.count for each in partition.nodes if getattr(each, attribute) >= number)
        if able >= wanted:
            continue
        most = max(getattr(each, attribute) for each in partition.nodes)
        if able == 0:
            has = f"nodes of partition {partition.name} have {most} {unit} at most"
        else:
            has = f"only {able} nodes of partition {partition.name} have so many {unit}"
        return f"{option}: {has}; ask for less on each node, or for another partition."
    return None


def _answered(answer: Answer) -> str:
    if answer.code != 0:
        raise no_answer(answer.complaint)
    return answer.out


def _leading_number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _limit(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _allowed(text: str) -> tuple[str, ...] | None:
    return None if text in ("ALL", "(null)", "") else tuple(text.split(","))
