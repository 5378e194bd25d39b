"""A run on the cluster, followed by its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from .cluster import RayCluster, marked, wait_for

SPEC = "[1,24,0,1 Cr3,3,16 Mp2,2 S1(1x0)1,3 Lbx32]"


class Run:
    """A run directory, and how its run is launched."""

    def __init__(self, cluster: RayCluster, folder: Path, lines: Path, *, epochs: int) -> None:
        self.cluster, self.folder, self.lines, self.epochs = cluster, folder, lines, epochs

    def words(self, *resources: object) -> list[str]:
        """The command line of its launch."""
        top = ["--workers", 0, "--seed", 5, "launch", "ray", "--cpus-per-proc", 1, *resources, "--", "train"]
        batches = ["-f", "binary", "-B", 2, "--global-batch-size", 4, "-q", "fixed", "-N", self.epochs]
        words = [sys.executable, "-m", "distrib", *top, *batches, "-s", SPEC, "-o", self.folder, self.lines]
        return [str(word) for word in words]

    def submit(self, *resources: object, **variables: str) -> str:
        """Launch it by `ray job submit`; the id of the job."""
        return self.cluster.submit(self.words(*resources), variables=variables)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, in order."""
        return [row for row in _rows(self.folder / "events.jsonl") if row["event"] == kind]

    def steps(self) -> int:
        """Rows that have been written of steps."""
        return len(_rows(self.folder / "steps.jsonl"))

    def wait_for_steps(self, more: int, seconds: float = 120.0) -> None:
        """Return when that many steps more have been made."""
        before = self.steps()
        wait_for(lambda: self.steps() >= before + more, f"{more} steps of {self.folder}", seconds)

    def wait_for_attempt(self, number: int, seconds: float = 120.0) -> float:
        """Return when an attempt has trained; the time at which it began its first step (unix seconds)."""

        def began() -> bool:
            return len(self.events("first_batch")) >= number

        wait_for(began, f"the first step of attempt {number}", seconds)
        return datetime.fromisoformat(self.events("first_batch")[number - 1]["time"]).timestamp()

    def processes(self) -> dict[int, str]:
        """The processes of all machines that belong to this run: its ranks and keepers."""
        mine = str(self.folder / "launch")
        return {
            pid: words
            for node in self.cluster.nodes.values()
            for pid, words in marked(node.mark).items()
            if mine in words
        }

    def check_ledger(self) -> None:
        """Every line exactly once an epoch, whatever happened."""
        done = subprocess.run(
            [sys.executable, "-m", "distrib", "ledger", "--json", str(self.folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        report = json.loads(done.stdout)
        assert report["exact"], report
        assert [epoch["complete"] for epoch in report["epochs"]] == [True] * self.epochs, report


def kill(pids: Iterator[int]) -> None:
    """SIGKILL."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def note(measured: dict[str, float]) -> None:
    """Keep measured seconds in the file that KETOS_TESTS_MEASURES names, if it names one."""
    path = os.environ.get("KETOS_TESTS_MEASURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"measured": time.time(), **measured}) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1] if line]
