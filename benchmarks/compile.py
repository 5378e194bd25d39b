"""Lines a second of compiling ground truth, whole process, beside kraken's compile where it is at hand.

    python benchmarks/compile.py [--kraken PATH_TO_KETOS] [--data FOLDER] [--workers N ...] [--repeat N]

Each command runs ``--repeat`` times in turn with the others, start-up included, on one thread of
libraries; the best time counts, being the one least disturbed by what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

OURS = """
import sys
from pathlib import Path
from distrib.shards.compile import CompileJob, compile_dataset

if __name__ == "__main__":
    output, format_type, workers, *sources = sys.argv[1:]
    compile_dataset(CompileJob(sources=[Path(source) for source in sources], output=Path(output),
                               format_type=format_type, workers=int(workers)))
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A collection and the format to read it as."""

    name: str
    format_type: str
    sources: Sequence[Path]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Best wall-clock seconds of a command, and what it wrote."""

    seconds: float
    lines: int
    megabytes: float


def cases(data: Path) -> list[Case]:
    """The collections that are under ``data``."""
    images = ("*.png", "*.jpg")
    fraktur = sorted(path for pattern in images for path in (data / "fraktur-lines").glob(pattern))
    found = [
        Case(
            name="print16-alto", format_type="alto", sources=sorted((data / "print16-alto").glob("**/*.xml"))
        ),
        Case(name="fraktur-lines", format_type="path", sources=fraktur),
    ]
    return [case for case in found if case.sources]


def commands(case: Case, output: Path, script: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The command lines to time, by the name to print."""
    sources = [str(source) for source in case.sources]
    result = {
        f"ours, {workers} worker{'s' * (workers != 1)}": [
            *(sys.executable, str(script), str(output), case.format_type, str(workers)),
            *sources,
        ]
        for workers in arguments.workers
    }
    if arguments.kraken:
        kraken = [*shlex.split(arguments.kraken), "--workers", "1"]
        result["kraken, 1 worker"] = [*kraken, "compile", "-f", case.format_type, "-o", str(output), *sources]
    return result


def run(command: Sequence[str], output: Path) -> Timing:
    """Time one command. Raises subprocess.CalledProcessError where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    from distrib.shards.arrow import ArrowDataset

    timing = Timing(seconds=seconds, lines=len(ArrowDataset(output)), megabytes=output.stat().st_size / 1e6)
    output.unlink()
    return timing


def main() -> None:
    """Print a table of lines a second and the ratio of times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kraken", help="kraken's ketos command to compare with")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="ground truth")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to try")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the best counts")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    found = cases(arguments.data)
    if not found:
        parser.error(f"no print16-alto or fraktur-lines in {arguments.data}: name their folder with --data")
    print(
        f"{'data':14} {'command':18} {'seconds':>8} {'lines':>6} {'lines/s':>8} {'MB':>6} {'kraken/this':>12}"
    )
    with tempfile.TemporaryDirectory() as folder:
        output, script = Path(folder, "out.arrow"), Path(folder, "ours.py")
        script.write_text(OURS, encoding="utf-8")
        for case in found:
            best: dict[str, Timing] = {}
            for _ in range(arguments.repeat):
                for name, command in commands(case, output, script, arguments).items():
                    timing = run(command, output)
                    best[name] = min(best.get(name, timing), timing, key=lambda each: each.seconds)
            kraken = best.get("kraken, 1 worker")
            for name, timing in best.items():
                ratio = f"{kraken.seconds / timing.seconds:.2f}" if kraken else "-"
                print(
                    f"{case.name:14} {name:18} {timing.seconds:8.2f} {timing.lines:6} "
                    f"{timing.lines / timing.seconds:8.1f} {timing.megabytes:6.1f} {ratio:>12}"
                )


if __name__ == "__main__":
    main()
