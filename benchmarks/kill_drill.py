"""A run killed again and again, and hurt otherwise, that must end as if nothing had happened.

    python benchmarks/kill_drill.py [--kills 100] [--processes 2] [--strategy ddp] [--seed 1] [--data FOLDER]
                                    [--json FILE] [--folder FOLDER]

An undisturbed run of a tiny network with dropout is the reference. Then the same run is started and hurt at
random moments until it has reached its end, in a new directory each time, until there have been enough kills
and three tenths of them fell into a save: SIGKILL of a rank, of the launcher, of a process that reads data,
of all; the disk full; the newest checkpoint truncated or with a bit turned over; its record torn or removed;
the lease of another machine left behind. After each the run is resumed. In the end the ledger must be exact,
nothing half written left, and weights, optimizer and position the same to the bit as the reference's, and so
the exported file: its best model, or the next best where a full disk did not take that checkpoint.

A tenth of the jobs are started by torchrun, the others forked from this process, which has imported all that
they need. Exits with 1 where anything was not as it must be. Lines are those of fraktur-lines or print16-alto
below --data, else drawn.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import OURS, ROOT, parser, use_one_thread
from drill_faults import SmallDisk
from drill_jobs import launched
from drill_run import FULL_DISK, PATIENCE, Decks, Habits, Hurt, Run

HEIGHT = 16
SPEC = f"[1,{HEIGHT},0,1 Cr3,3,8 Mp2,2 S1(1x0)1,3 Lbx24 Do0.3]"
LINES = 56
EPOCHS = 8
INSIDE = 0.3
"""The part of all kills that must fall into a save."""
MEGABYTES = 64
"""Size of the disk that gets full; every third run is on one."""
_MOST_PROBLEMS = 3
_ELSEWHERE = ("common/ketos/experiment", "common/loops")
"""Where checkpoints of one state differ: they name their run directory, and count Lightning's starts."""


def ketos(*words: str) -> subprocess.CompletedProcess[str]:
    """A command that has ended, well or not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*OURS, *words], env=environment, capture_output=True, text=True, check=False)


def lines_of(data: Path, scratch: Path) -> Path:
    """A data set of a few lines, normalised to the height of the network."""
    form, files = "path", sorted(each for each in (data / "fraktur-lines").glob("*.png"))
    if not files:
        form, files = "alto", sorted((data / "print16-alto").glob("**/*.xml"))[:3]
    if not files:
        from distrib.ground_truth.sample import write_sample

        write_sample(scratch / "sample", pairs=LINES, pages=0)
        form, files = "path", sorted((scratch / "sample" / "lines").glob("*.png"))
    output = scratch / "lines"
    words = ["--workers", "0", "compile", "-f", form, "-o", str(output), "--shard-format", "arrow"]
    words += ["--height", str(HEIGHT), *map(str, files[:LINES])]
    done = ketos(*words)
    if done.returncode:
        raise SystemExit(done.stderr)
    return output


def undisturbed(directory: Path, words: Sequence[str], processes: int, logs: Path, habits: Habits) -> None:
    """The run that nothing happens to; learns from it how long things take."""
    printed = logs / "undisturbed.log"
    job = launched([*words, "-o", str(directory)], processes=processes, printed=printed)
    try:
        ended = job.ends_within(4 * PATIENCE)
    finally:
        code = job.end()
    if code or not ended:
        raise SystemExit(f"The undisturbed run ended with {code}:\n{job.output}")
    from distrib.runtime.directory.events import read_events

    events = {event["event"]: event for event in read_events(directory / "events.jsonl")}
    habits.start[True] = events["first_batch"]["elapsed"]
    habits.step = (events["stop"]["elapsed"] - events["first_batch"]["elapsed"]) / events["stop"]["step"]


def unlike_at_end(directory: Path, reference: Path, lost: Sequence[str]) -> list[str]:
    """What is wrong with a run that has reached its end, having ``lost`` those validations' checkpoints."""
    from distrib.runtime.checkpoints.difference import differences
    from distrib.runtime.checkpoints.reader import open_checkpoint

    complaints: list[str] = []
    done = ketos("ledger", "--json", str(directory))
    report = json.loads(done.stdout) if done.stdout else {"exact": False, "epochs": []}
    complete = sum(epoch["complete"] for epoch in report["epochs"])
    if done.returncode or not report["exact"] or complete != EPOCHS:
        complaints.append(f"the ledger is not exact, {complete} epochs whole: {done.stderr}")
    left = [str(path) for path in directory.rglob("*") if path.name.startswith(".") or "lease" in path.name]
    if left:
        complaints.append(f"left behind: {', '.join(left)}")
    last = [open_checkpoint(folder / "last.ckpt") for folder in (directory, reference)]
    places = [place for place in differences(*last) if not place.startswith(_ELSEWHERE)]
    if places:
        complaints.append(f"the last checkpoint differs in {', '.join(places[:10])}")
    if exported(directory) != best_weights(reference, lost):
        complaints.append("the exported file is not the best model")
    return complaints


def lost_validations(directory: Path, reference: Path) -> list[str]:
    """Checkpoints of validations that the reference has, which keeps all of them, and the run has not."""
    from distrib.runtime.checkpoints.record import best

    return sorted(each.path.name for each in best(reference) if not (directory / each.path.name).exists())


def exported(directory: Path) -> dict[str, bytes]:
    """The tensors of the exported file, by their names in the network."""
    from safetensors.numpy import load_file

    (file,) = directory.glob("best_*.safetensors")
    return {key.partition(".")[2]: tensor.tobytes() for key, tensor in load_file(file).items()}


def best_weights(reference: Path, lost: Sequence[str]) -> dict[str, bytes]:
    """The weights of the reference's best checkpoint but for those ``lost``."""
    from distrib.runtime.checkpoints.reader import open_checkpoint
    from distrib.runtime.checkpoints.record import best

    chosen = next(each.path for each in best(reference) if each.path.name not in lost)
    reader = open_checkpoint(chosen)
    weights = [key for key in reader.shapes if key.startswith("weights/")]
    return {key.partition("/")[2]: reader.tensor(key).numpy().tobytes() for key in weights}


class Drill:
    """All runs of the drill."""

    def __init__(self, arguments: Any, folder: Path) -> None:
        self.kills: int = arguments.kills
        self.runs: list[Run] = []
        self.problems: list[str] = []
        self.lost = 0
        """Checkpoints of validations that a full disk did not take."""
        self._processes: int = arguments.processes
        self._folder = folder
        self._logs = folder / "logs"
        self._logs.mkdir()
        self._draw = random.Random(arguments.seed)
        self._decks = Decks(self._draw, arguments.kills)
        self._habits = Habits()
        data = lines_of(arguments.data, folder)
        words = ["--workers", "1", "--seed", str(arguments.seed), "train", "-f", "binary", "-B", "2"]
        words += ["-q", "fixed", "-N", str(EPOCHS), "--save-steps", "3", "--keep-last", "2"]
        self._words = [*words, "--strategy", arguments.strategy, "-s", SPEC, str(data)]
        self._reference = folder / "undisturbed"
        undisturbed(self._reference, self._words, self._processes, self._logs, self._habits)

    @property
    def hurts(self) -> list[Hurt]:
        """What was done to all runs."""
        return [hurt for run in self.runs for hurt in run.hurts]

    @property
    def killed(self) -> list[Hurt]:
        """The kills among it."""
        return [hurt for hurt in self.hurts if hurt.killed]

    @property
    def inside(self) -> int:
        """The kills that fell into a save."""
        return sum(bool(hurt.phase) for hurt in self.killed)

    @property
    def enough(self) -> bool:
        """Whether there have been enough kills, of all processes at once too, and enough inside a save."""
        of_all = self._kinds >= {"SIGKILL of the whole group", "SIGKILL of the launcher"}
        return of_all and len(self.killed) >= self.kills and self.inside >= INSIDE * len(self.killed)

    @property
    def _kinds(self) -> set[str]:
        # A job of one process is its own launcher.
        alone = {"SIGKILL of the launcher"} if self._processes == 1 else set()
        return {hurt.kind for hurt in self.killed} | alone

    def go(self) -> None:
        """Run after run until there have been enough kills."""
        while not self.enough and len(self.problems) < _MOST_PROBLEMS:
            self._one_run(len(self.runs))

    def _one_run(self, number: int) -> None:
        place = self._folder / f"run{number:02}"
        disk = SmallDisk(place, MEGABYTES) if number % 3 == 0 else None
        run = Run(
            place / "run",
            number=number,
            words=self._words,
            processes=self._processes,
            disk=disk,
            logs=self._logs,
            draw=self._draw,
            decks=self._decks,
            habits=self._habits,
        )
        self.runs.append(run)
        try:
            ended = False
            while not ended:
                before = len(run.hurts)
                wants_saves = self.inside < (INSIDE + 0.1) * len(self.killed)
                ended = run.go_on(hurt=not self.enough, wants_saves=wants_saves)
                self._tell(run, before)
            if not run.problems:
                self._check_end(run)
            if run.problems:
                self.problems += run.problems
                shutil.copytree(run.directory, self._folder / f"problem{number:02}", symlinks=True)
        finally:
            if disk is not None:
                disk.close()

    def _check_end(self, run: Run) -> None:
        lost = lost_validations(run.directory, self._reference)
        complaints = unlike_at_end(run.directory, self._reference, lost)
        # A full disk costs a run the checkpoints that could not be written, and no more.
        if lost and not any(hurt.kind.startswith(FULL_DISK) for hurt in run.hurts):
            complaints.append(f"there is no {', '.join(lost)}")
        self.lost += len(lost)
        run.problems += [f"{run.directory}: {each}" for each in complaints]

    def _tell(self, run: Run, before: int) -> None:
        done = [hurt.kind + (f" ({hurt.phase})" if hurt.phase else "") for hurt in run.hurts[before:]]
        what = ", ".join(done) or "left alone"
        print(
            f"{len(self.killed):4} run {len(self.runs)}, job {run.jobs}: {what} ({run.planned})",
            file=sys.stderr,
            flush=True,
        )


def table(hurts: Sequence[Hurt]) -> list[dict[str, Any]]:
    """A row for each kind of harm."""
    rows = []
    for kind in sorted(
        {hurt.kind for hurt in hurts}, key=lambda kind: (not kind.startswith("SIGKILL"), kind)
    ):
        those = [hurt for hurt in hurts if hurt.kind == kind]
        lost = [hurt.lost for hurt in those if hurt.lost is not None]
        rows.append(
            {
                "kind": kind,
                "times": len(those),
                "inside a save": sum(bool(hurt.phase) for hurt in those),
                "resumed": sum(hurt.resumed for hurt in those),
                "seconds lost, mean": round(sum(lost) / max(len(lost), 1), 1),
                "most": round(max(lost, default=0.0), 1),
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print(
        f"\n{'what happened':52} {'times':>6} {'inside a save':>14} {'resumed':>8} {'s lost':>7} {'most':>6}"
    )
    for kind, times, inside, resumed, lost, most in (row.values() for row in rows):
        print(f"{kind:52} {times:6} {inside:14} {resumed:8} {lost:7.1f} {most:6.1f}")


def main() -> int:
    """Print the table; 1 where something was not as it must be."""
    options = parser(__doc__ or "")
    options.add_argument("--kills", type=int, default=100, help="kills in all")
    options.add_argument("--processes", type=int, default=2, help="processes of the run")
    options.add_argument("--strategy", default="ddp", help="as `ketos train` has it")
    options.add_argument("--seed", type=int, default=1, help="seed of the run and of what happens to it")
    options.add_argument("--json", type=Path, help="file for the figures")
    options.add_argument("--folder", type=Path, help="new folder for the runs, kept; on the disk in question")
    arguments = options.parse_args()
    use_one_thread(pin=False)
    sys.path.insert(0, str(ROOT))
    began = time.time()
    folder = Path(tempfile.mkdtemp()) if arguments.folder is None else arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=arguments.folder is None)
    import_all(arguments.strategy)
    drill = Drill(arguments, folder)
    drill.go()
    rows = table(drill.hurts)
    show(rows)
    minutes = (time.time() - began) / 60
    print(
        f"\n{len(drill.killed)} kills, {drill.inside} of them inside a save, in {len(drill.runs)} runs of "
        f"{sum(run.jobs for run in drill.runs)} jobs and {minutes:.0f} minutes; each run ended "
        f"{'otherwise than' if drill.problems else 'to the bit as'} the undisturbed one."
    )
    phases = Counter(hurt.phase for hurt in drill.killed if hurt.phase)
    print("Saves that were cut off: " + ", ".join(f"{count} {name}" for name, count in phases.most_common()))
    print(f"Checkpoints of validations that a full disk did not take: {drill.lost}")
    for problem in drill.problems:
        print(f"Problem: {problem}")
    if arguments.json:
        facts: dict[str, Any] = {"kills": len(drill.killed), "inside": drill.inside, "runs": len(drill.runs)}
        facts |= {
            "minutes": round(minutes, 1),
            "phases": phases,
            "lost": drill.lost,
            "problems": drill.problems,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")
    if arguments.folder is None and not drill.problems:
        shutil.rmtree(folder)
    return int(bool(drill.problems))


def import_all(strategy: str) -> None:
    """Import what a job imports, so that forked ones need not; starts no thread of Python."""
    import lightning.pytorch  # noqa: F401
    import torch

    import distrib.__main__
    import distrib.cli.main
    import distrib.runtime.strategies.plain
    import distrib.training.run

    if strategy == "fsdp":
        import distrib.runtime.strategies.fully_sharded
    elif strategy.startswith("deepspeed"):
        import distrib.runtime.strategies.deepspeed  # noqa: F401
    torch.set_num_threads(1)


if __name__ == "__main__":
    raise SystemExit(main())
