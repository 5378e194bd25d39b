"""A SLURM cluster on this machine: a real slurmctld and slurmd's, without privileges."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
NODES = ("n1", "n2", "n3")
CPUS = 4
GPUS = 4
ACCOUNT = "chartularia"
"""The one account that the partition `closed` takes."""
_SYSTEM_PATHS = ("/usr/sbin", "/sbin", "/usr/local/sbin")
_START_SECONDS = 20.0
_ATTEMPTS = 3

_CONF = """\
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobSubmitPlugins=lua
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=8
KillWait=20
MinJobAge=600
MessageTimeout=5
FirstJobId={first_job}
MailProg=/bin/true
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000 "
    "Gres=gpu:{gpus}\n"
)
_PARTITIONS = f"""\
PartitionName=p Nodes=ALL Default=YES State=UP PriorityTier=10
PartitionName=low Nodes=ALL State=UP PriorityTier=1 GraceTime=60
PartitionName=short Nodes=ALL State=UP MaxTime=10
PartitionName=pair Nodes=n1,n2 State=UP
PartitionName=closed Nodes=ALL State=UP AllowAccounts={ACCOUNT} AllowQos=urgent
"""
# Without an accounting database SLURM takes any quality of service; a site's own rules may not.
_RULES = """\
function slurm_job_submit(job, partitions, user)
  if job.qos == "unpaid" then return slurm.ESLURM_INVALID_QOS or 2066 end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user)
  return slurm.SUCCESS
end
"""


class NoCluster(AssertionError):
    """The cluster did not start; the message holds the ends of its logs."""


@dataclass
class _Daemon:
    process: subprocess.Popen[bytes]
    words: list[str]


class Cluster:
    """A controller and three nodes under ``folder``, which is private to it; use as a context manager."""

    def __init__(self, folder: Path, nodes: Sequence[str] = NODES) -> None:
        self.folder = folder
        self.nodes = tuple(nodes)
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, _Daemon] = {}

    @property
    def variables(self) -> dict[str, str]:
        """What a user's environment has on this cluster, beside what it has anyway."""
        return {"SLURM_CONF": str(self.conf), "PATH": _path()}

    @property
    def environment(self) -> dict[str, str]:
        """A whole environment, without variables of a job that the tests themselves may run in."""
        outer = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))
        }
        return {**outer, **self.variables}

    def __enter__(self) -> Cluster:
        for attempt in range(_ATTEMPTS):
            self._prepare()
            try:
                self._start_all()
                return self
            except NoCluster:
                # Another program may have taken one of the ports meanwhile.
                self._kill_everything()
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError, AssertionError):
            self.clear(seconds=10)
        for daemon in self._daemons.values():
            daemon.process.terminate()
        deadline = time.monotonic() + 5
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.process.wait(timeout=max(0.1, deadline - time.monotonic()))
        self._kill_everything()

    def run(self, *words: object, check: bool = True) -> str:
        """What a program of SLURM prints. Raises AssertionError where it fails and must not."""
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job; nothing where it does not know or does not answer."""
        words = self.run("scontrol", "show", "job", "-o", number, check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def queue(self) -> list[str]:
        """The jobs that have not ended."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def clear(self, *, seconds: float = 60) -> None:
        """Cancel what there is and return when nothing is left of it and all nodes can be used again."""
        for name in self.nodes:
            if self._daemons[name].process.poll() is not None:
                self.restart_node(name)
        if self.queue():
            self.run("scancel", *self.queue(), check=False)
        try:
            wait_until(lambda: not self.queue(), seconds=seconds, of="an empty queue")
            wait_until(self._all_idle, seconds=seconds, of="idle nodes")
        finally:
            for pid in self._pids_of_jobs():
                _kill(pid)

    def kill_node(self, name: str) -> None:
        """SIGKILL a node's slurmd, its slurmstepd's and all processes of jobs on it, at one stroke."""
        pids = [self._daemons[name].process.pid, *self._pids_of(name)]
        for pid in pids:
            _kill(pid)
        self._daemons[name].process.wait()
        # What was just being forked.
        for pid in self._pids_of(name):
            _kill(pid)

    def restart_node(self, name: str) -> None:
        """Start a node that was killed; it takes jobs again when this returns."""
        self._start(name, self._daemons[name].words)
        wait_until(
            lambda: self._states().get(name) in ("idle", "mix", "alloc"), seconds=30, of=f"{name} idle"
        )

    def kill_controller(self) -> None:
        """SIGKILL slurmctld."""
        self._daemons["slurmctld"].process.kill()
        self._daemons["slurmctld"].process.wait()

    def start_controller(self) -> None:
        """Start slurmctld on the state that the one before has saved."""
        # Without -c: that would forget all jobs.
        self._start("slurmctld", ["slurmctld", "-D"])
        wait_until(lambda: self.run("scontrol", "ping", check=False).count("UP"), seconds=30, of="slurmctld")

    def restart_controller(self) -> None:
        """SIGKILL slurmctld and start it again."""
        self.kill_controller()
        self.start_controller()

    @property
    def state(self) -> Path:
        """Where the controller keeps what it knows."""
        return self.folder / "state"

    def logs(self) -> str:
        """The ends of the daemons' logs, for a failed test to show."""
        found = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in found)

    def told(self) -> str:
        """How the cluster stands, for a failed test to show."""
        now = [
            self.run(*words, check=False)
            for words in (("sinfo", "-N"), ("squeue",), ("scontrol", "show", "job"))
        ]
        return "\n".join([*now, self.logs()])

    def _prepare(self) -> None:
        for name in ("state", "run", "log", *(f"spool/{node}" for node in self.nodes)):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        ports = free_ports(1 + len(self.nodes))
        host = socket.gethostname().split(".")[0]
        text = _CONF.format(
            host=host,
            user=_user(),
            folder=self.folder,
            controller_port=ports[0],
            # Ports of a job are made from its number: side by side, sessions must not share numbers.
            first_job=random.randrange(1000, 60_000_000),
        )
        for name, port in zip(self.nodes, ports[1:], strict=True):
            text += _NODE.format(name=name, host=host, port=port, cpus=CPUS, gpus=GPUS)
        self.conf.write_text(text + _PARTITIONS)
        (self.folder / "job_submit.lua").write_text(_RULES)
        for number in range(GPUS):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n")

    def _start_all(self) -> None:
        self._start("slurmctld", ["slurmctld", "-D", "-c"])
        for name in self.nodes:
            self._start(name, ["slurmd", "-D", "-N", name])
        deadline = time.monotonic() + _START_SECONDS
        while not self._all_idle():
            dead = [name for name, daemon in self._daemons.items() if daemon.process.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise NoCluster(f"SLURM did not start ({', '.join(dead) or 'not idle'}):\n{self.logs()}")
            time.sleep(0.05)

    def _start(self, name: str, words: list[str]) -> None:
        with (self.folder / "log" / f"{name}.out.log").open("ab") as output:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                # Not ended by a Ctrl-C that is meant for the tests, which then end them in order.
                start_new_session=True,
            )
        self._daemons[name] = _Daemon(process, words)

    def _states(self) -> dict[str, str]:
        lines = self.run("sinfo", "-h", "-N", "-p", "p", "-o", "%N %t", check=False).splitlines()
        return {words[0]: words[1] for words in map(str.split, lines) if len(words) == 2}

    def _all_idle(self) -> bool:
        states = self._states()
        return all(states.get(name) == "idle" for name in self.nodes)

    def _pids_of(self, node: str) -> list[int]:
        """The slurmstepd's of a node and the processes of jobs on it."""
        log = str(self.folder / "log" / f"slurmd.{node}.log")
        name = f"SLURMD_NODENAME={node}"
        return [
            pid
            for pid in _all_pids()
            if _has_open(pid, log) or {name, f"SLURM_CONF={self.conf}"} <= _variables(pid)
        ]

    def _pids_of_jobs(self) -> Iterable[int]:
        daemons = {daemon.process.pid for daemon in self._daemons.values()}
        return [pid for node in self.nodes for pid in self._pids_of(node) if pid not in daemons]

    def _kill_everything(self) -> None:
        for daemon in self._daemons.values():
            _kill(daemon.process.pid)
            daemon.process.wait()
        for pid in self._pids_of_jobs():
            _kill(pid)
        self._daemons.clear()


def missing_programs() -> list[str]:
    """The programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def wait_until(
    reached: Callable[[], object], *, seconds: float, of: str, told: Callable[[], str] = lambda: ""
) -> None:
    """Return once ``reached``; AssertionError naming what was waited for, and what is told, after that."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {of}\n{told()}"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives out by itself."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.randrange(10_000, 32_000)
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("", port))
            except OSError:
                continue
            found.append(port)
    return found


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATHS])


def _user() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _all_pids() -> list[int]:
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdecimal() and int(path.name) != os.getpid()
    ]


def _has_open(pid: int, file: str) -> bool:
    # slurmstepd writes its title over its environment, but keeps the log of its slurmd open.
    with contextlib.suppress(OSError):
        return any(str(entry.readlink()) == file for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _variables(pid: int) -> set[str]:
    with contextlib.suppress(OSError):
        return set(Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0"))
    return set()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
