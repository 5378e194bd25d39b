"""A run on the cluster: launched as a user does, followed by its files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from .cluster import Cluster, wait_until

SPEC = "[1,16,0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx16]"
_END_SECONDS = 120.0


class Run:
    """A run directory, and how its run is launched on a cluster."""

    def __init__(self, cluster: Cluster, folder: Path, lines: Path, *, epochs: int) -> None:
        self.cluster, self.folder, self.lines, self.epochs = cluster, folder, lines, epochs

    @property
    def options(self) -> list[object]:
        """The options of `ketos train`; saved so often that little is lost with a node."""
        batches = ["-f", "binary", "-B", 2, "--global-batch-size", 4, "-q", "fixed", "-N", self.epochs]
        return [*batches, "-F", 4, "--save-steps", 8, "-s", SPEC, "-o", self.folder, self.lines]

    def launch(self, *resources: object) -> str:
        """Submit it; the number of its job."""
        ketos(self.cluster, *TOP, "launch", "slurm", *resources, "--", "train", *self.options)
        return str(json.loads((self.folder / "launch" / "slurm.json").read_text())["job"])

    def status(self) -> dict[str, Any]:
        """What `ketos launch status` says."""
        (found,) = json.loads(ketos(self.cluster, "launch", "status", "--json", self.folder))
        return dict(found)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, in order."""
        return [row for row in _rows(self.folder / "events.jsonl") if row["event"] == kind]

    def causes(self) -> list[str | None]:
        """Why each attempt ended; None of one whose agent was killed."""
        ends = {event["attempt"]: event["cause"] for event in self.events("attempt_end")}
        return [ends.get(event["attempt"]) for event in self.events("attempt")]

    def wait_for_steps(self, more: int) -> None:
        """Return when that many steps more have been made."""
        steps = self.folder / "steps.jsonl"
        before = len(_rows(steps))
        wait_until(lambda: len(_rows(steps)) >= before + more, seconds=60, of=f"{more} steps", told=self.told)

    def resumed_after(self, moment: float) -> float:
        """Seconds from ``moment`` (unix time) to the first training step of a later attempt."""

        def begun() -> list[float]:
            times = (datetime.fromisoformat(row["time"]).timestamp() for row in self.events("first_batch"))
            return [each for each in times if each > moment]

        wait_until(begun, seconds=_END_SECONDS, of=f"a step after {moment}", told=self.told)
        return begun()[0] - moment

    def wait_for_end(self) -> None:
        """Return when the run is done, by itself."""

        def ended() -> bool:
            return any(event["decision"] == "end" for event in self.events("attempt_end"))

        wait_until(ended, seconds=_END_SECONDS, of="the end of the run", told=self.told)
        assert self.causes()[-1] == "done", self.told()

    def check_ledger(self) -> None:
        """Every line exactly once an epoch, whatever happened."""
        report = json.loads(ketos(self.cluster, "ledger", "--json", self.folder))
        assert report["exact"], report
        assert [epoch["complete"] for epoch in report["epochs"]] == [True] * self.epochs, report

    def told(self) -> str:
        """What its logs hold, for a failed test to show."""
        paths = sorted((self.folder / "launch").rglob("*.log"))
        logs = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in paths)
        return f"{logs}\n{self.cluster.told()}"


TOP = ("-d", "cpu", "--workers", 0)


def ketos(cluster: Cluster, *arguments: object, expect: int = 0, **variables: str) -> str:
    """What the command prints on a machine of the cluster, both streams."""
    done = subprocess.run(
        [sys.executable, "-m", "distrib", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**cluster.environment, "OMP_NUM_THREADS": "1", **variables},
        timeout=120,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stdout + done.stderr


def note(**measured: float) -> None:
    """Keep measured seconds in the file that KETOS_TESTS_MEASURES names, if it names one."""
    path = os.environ.get("KETOS_TESTS_MEASURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            rounded = {name: round(seconds, 1) for name, seconds in measured.items()}
            file.write(json.dumps({"measured": round(time.time()), **rounded}) + "\n")


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1] if line]
