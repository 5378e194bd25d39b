"""A real Ray cluster on this host: a head and further nodes, each with processes of its own.

Every process of a node, and whatever those start, carries the node's mark in its environment. So a node is
killed as a machine that loses its power is, and nothing but what a cluster has started is ever killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MARK = "KETOS_TESTS_RAY_NODE"
START_SECONDS = 120.0
_OBJECT_STORE_BYTES = 200_000_000
_RAY = Path(sys.executable).with_name("ray")


def require_ray() -> None:
    """Skip without Ray, or fail where the tests with Ray must run."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        if "ray" in os.environ.get("KETOS_TESTS_REQUIRE", "").split():
            pytest.fail(f"Ray is not installed ({error}), and tests marked ray must run here")
        pytest.skip("Ray is not installed")


@dataclass(frozen=True, kw_only=True)
class RayNode:
    """A started node: its name in the cluster, and the mark of its processes."""

    name: str
    mark: str
    folder: Path
    starter: subprocess.Popen[bytes]

    def processes(self) -> dict[int, str]:
        """The command line of each living process of the node, by process id."""
        return marked(self.mark)


class RayCluster:
    """A head named n1 with a dashboard, and n2, n3, … as they are added."""

    def __init__(self, folder: Path, *, cpus: int = 2) -> None:
        self.folder = folder
        self.cpus = cpus
        self.port, self.dashboard_port = _free_ports(2)
        self.nodes: dict[str, RayNode] = {}
        self._drained = False

    @property
    def address(self) -> str:
        """Where nodes and drivers find the cluster."""
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self, nodes: int = 2) -> None:
        """Start the head and ``nodes`` - 1 others, and wait for all of them."""
        self._start_head()
        wait_for(lambda: _answers(self.port), "the head's port to answer", START_SECONDS)
        for number in range(2, nodes + 1):
            self.add_node(f"n{number}")
        self.wait_for_nodes(nodes)
        wait_for(self._takes_jobs, "the dashboard to take jobs", START_SECONDS)

    def _start_head(self) -> None:
        self._start_node(
            "n1",
            "--head",
            f"--port={self.port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
        )

    def add_node(self, name: str, *, blind_to: Path | None = None) -> None:
        """Start a node and return at once; ``blind_to`` is a folder whose files it does not see."""
        self._start_node(name, f"--address={self.address}", blind_to=blind_to)

    def _start_node(self, name: str, *options: str, blind_to: Path | None = None) -> None:
        mark = f"{name}-{secrets.token_hex(6)}"
        (agent,) = _free_ports(1)
        folder = self.folder / mark
        folder.mkdir()
        words = [
            *(_RAY, "start", "--block", *options, "--node-ip-address=127.0.0.1", f"--node-name={name}"),
            *(f"--num-cpus={self.cpus}", "--num-gpus=0", f"--object-store-memory={_OBJECT_STORE_BYTES}"),
            f"--dashboard-agent-listen-port={agent}",
            *(f"--temp-dir={folder}", "--disable-usage-stats", "--include-log-monitor=false"),
        ]
        if blind_to is not None:
            hide = 'mount -t tmpfs none "$0" && exec "$@"'
            words = ["unshare", "--mount", "sh", "-c", hide, blind_to, *words]
        with (folder / "start.log").open("wb") as log:
            starter = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment() | {MARK: mark},
            )
        self.nodes[name] = RayNode(name=name, mark=mark, folder=folder, starter=starter)

    def living(self) -> dict[str, str]:
        """The id of each living node by its name, as the cluster itself says."""
        with contextlib.suppress(OSError):
            found = self._asked("/api/v0/nodes")["data"]["result"]["result"]
            return {node["node_name"]: node["node_id"] for node in found if node["state"] == "ALIVE"}
        return {}

    def wait_for_nodes(self, count: int) -> None:
        """Return when the cluster has ``count`` living nodes."""
        wait_for(lambda: len(self.living()) == count, f"{count} living nodes", START_SECONDS)

    def _asked(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.dashboard}{path}", timeout=START_SECONDS) as answer:
            return json.load(answer)

    def restore(self) -> None:
        """Bring back n2, if a test has taken it away."""
        if "n2" in self.nodes and not self._drained:
            return
        for name in self.nodes.keys() - {"n1"}:
            self.kill_node(name)
        self._drained = False
        wait_for(lambda: self.living().keys() == {"n1"}, "the end of the old node", START_SECONDS)
        self.add_node("n2")
        self.wait_for_nodes(2)

    def kill_node(self, name: str) -> None:
        """Kill every process of a node without warning, those of its workers and jobs included."""
        node = self.nodes.pop(name)
        kill_marked(node.mark)
        node.starter.wait()
        shutil.rmtree(node.folder, ignore_errors=True)

    def drain_node(self, name: str, *, seconds: int) -> None:
        """Announce that a node will be taken away, as a cloud that preempts it does."""
        node_id = self.living()[name]
        self._drained = self._drained or name == "n2"
        subprocess.run(
            [
                *(_RAY, "drain-node", f"--address={self.address}", f"--node-id={node_id}"),
                *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot instance"),
                f"--deadline-remaining-seconds={seconds}",
            ],
            check=True,
            capture_output=True,
            env=_environment(),
        )

    def submit(self, words: list[str], *, variables: dict[str, str] | None = None) -> str:
        """``ray job submit --no-wait`` a command; the id of the job."""
        job = f"t-{secrets.token_hex(4)}"
        environment = json.dumps({"env_vars": {"OMP_NUM_THREADS": "1", **(variables or {})}})
        self.jobs(
            "submit", f"--submission-id={job}", "--no-wait", f"--runtime-env-json={environment}", "--", *words
        )
        return job

    def stop(self, job: str) -> None:
        """``ray job stop``, which returns when the job has stopped."""
        self.jobs("stop", job)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(self._asked(f"/api/jobs/{job}")["status"])

    def logs(self, job: str) -> str:
        """What the job's driver has printed."""
        return self.jobs("logs", job)

    def wait_for_job(self, job: str, seconds: float = 200.0) -> str:
        """The state in which a job ends."""
        ended = ("SUCCEEDED", "FAILED", "STOPPED")
        wait_for(lambda: self.state(job) in ended, f"the end of job {job}", seconds, every=0.5)
        return self.state(job)

    def jobs(self, action: str, *words: str) -> str:
        """What ``ray job ACTION`` prints."""
        done = subprocess.run(
            [_RAY, "job", action, f"--address={self.dashboard}", *words],
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
            timeout=START_SECONDS,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0 or "No available agent" in printed, printed
        return printed

    def _takes_jobs(self) -> bool:
        with contextlib.suppress(OSError):
            return isinstance(self._asked("/api/jobs/"), list)
        return False

    def close(self) -> None:
        """Kill every process of every node."""
        for name in list(self.nodes):
            self.kill_node(name)
        shutil.rmtree(self.folder, ignore_errors=True)


def new_cluster(nodes: int = 2) -> RayCluster:
    """A started cluster in a short folder of its own: sockets have short names."""
    cluster = RayCluster(Path(tempfile.mkdtemp(prefix="kr")))
    try:
        cluster.start(nodes)
    except BaseException:
        cluster.close()
        raise
    return cluster


def wait_for(reached: Callable[[], bool], what: str, seconds: float, *, every: float = 0.1) -> None:
    """Return when ``reached``; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(every)


def marked(mark: str) -> dict[int, str]:
    """The command line of each living process with this mark, and of their children, by process id.

    Ray's agents give themselves titles, which are written over their environment.
    """
    wanted = f"{MARK}={mark}".encode()
    found, parents = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents[int(entry.name)] = (parent, words)
            if words and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = words
    known = list(found)
    for pid in known:
        for child, (parent, words) in parents.items():
            if parent == pid and words and child not in found:
                found[child] = words
                known.append(child)
    return found


def kill_marked(mark: str) -> None:
    """SIGKILL all processes with this mark as one: none lives to tell of the end of another."""
    stopped: set[int] = set()
    while new := marked(mark).keys() - stopped:
        _signal(new, signal.SIGSTOP)
        stopped |= new
    _signal(stopped, signal.SIGKILL)
    while living := marked(mark):
        _signal(living, signal.SIGKILL)
        time.sleep(0.02)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _environment() -> dict[str, str]:
    """The environment without what would lead to another cluster, or mark this process's own.

    Jobs run with the PATH of the cluster: a user's has `ketos` on it, whatever that of the tests has.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != MARK}
    path = os.pathsep.join([str(_RAY.parent), own.get("PATH", os.defpath)])
    return own | {"OMP_NUM_THREADS": "1", "PATH": path}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _answers(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(1.0)
        return connection.connect_ex(("127.0.0.1", port)) == 0
