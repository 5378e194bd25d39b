"""Validation accuracy epoch by epoch of training runs, kept so that nothing is trained twice."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from common import OURS, one_core

SMALL = "[1,40,0,1 Cr3,5,16,2,2 Cr3,5,32,2,2 S1(1x0)1,3 Lbx96 Do0.1,2 Lbx96 Do]"
_SHOWN = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 40, 60)


def learning_options(options: argparse.ArgumentParser, *, epochs: int, seeds: int) -> None:
    """What all benchmarks of accuracy ask."""
    options.add_argument("--spec", default=SMALL, help="VGSL spec to train")
    options.add_argument("--epochs", type=int, default=epochs, help="epochs to train for")
    options.add_argument("--seeds", type=int, default=seeds, help="runs of each, with seeds 1, 2, …")
    options.add_argument("--sets", nargs="+", help="data sets by name")
    options.add_argument("--base", type=Path, help="weights to start from, instead of fresh ones of --spec")
    options.add_argument("--keep", type=Path, help="JSON file of curves that are known already")


def start(arguments: argparse.Namespace) -> list[object]:
    """The words of what a training starts from."""
    if arguments.base is None:
        return ["-s", arguments.spec]
    return ["-i", arguments.base, "--resize", "union"]


class Curves:
    """Curves by name, ``set/what/seed``; accuracies are in 0..1."""

    def __init__(self, keep: Path | None) -> None:
        self._keep = keep
        self.known: dict[str, list[float]] = {}
        if keep is not None and keep.is_file():
            self.known = json.loads(keep.read_text(encoding="utf-8"))

    def take(self, key: str, train: Callable[[Path], list[float]], folder: Path) -> list[float]:
        """The curve of that name, trained in a folder of its own where it is not known."""
        if key not in self.known:
            self.known[key] = train(folder / key.replace("/", "-"))
            if self._keep is not None:
                self._keep.write_text(json.dumps(self.known), encoding="utf-8")
        return self.known[key]

    def show(self, title: str) -> None:
        """A table of the curves ``title/what/seed``: per cent at some epochs, and at the best one."""
        mine = {key: curve for key, curve in self.known.items() if key.startswith(f"{title}/")}
        what = list(dict.fromkeys(key.split("/")[1] for key in mine))
        epochs = [each for each in _SHOWN if each <= min(map(len, mine.values()))]
        print(
            f"\n{title}\n{'epoch':24}" + "".join(f"{each:>7}" for each in epochs) + "   best (mean ± spread)"
        )
        for name in what:
            found = [curve for key, curve in mine.items() if key.split("/")[1] == name]
            mean = "".join(
                f"{100 * statistics.fmean(each[epoch - 1] for each in found):7.1f}" for epoch in epochs
            )
            best = [100 * max(curve) for curve in found]
            spread = statistics.stdev(best) if len(best) > 1 else 0.0
            print(f"{name:24}{mean}   {statistics.fmean(best):.2f} ± {spread:.2f} ({len(best)})")


def run_ours(words: Sequence[object], run: Path) -> None:
    """Our `ketos` with these words and ``-o run``."""
    command = [*OURS, *map(str, words), "-o", str(run)]
    subprocess.run(command, check=True, capture_output=True, env=one_core())


def learn(words: Sequence[object], run: Path) -> list[float]:
    """Validation accuracy after each epoch of our `ketos train` with these words and ``-o run``."""
    run_ours(words, run)
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["val_accuracy"] for row in rows]


def best_weights(run: Path) -> Path:
    """The weights file that a run of ours has left."""
    (found,) = run.glob("best_*.safetensors")
    return found
