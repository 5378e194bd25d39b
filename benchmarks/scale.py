"""What a large data set costs `ketos train` before its first batch and in memory, beside one of 10 MB.

    python benchmarks/scale.py [--size 10G] [--steps N] [--data FOLDER] [--repeat N] [--json]

Real lines (print16-alto, else drawn ones) are written over and over, normalised, as shards of Arrow and of
tar and as a single `.arrow`, and deleted afterwards. `ketos train` with a tiny network then runs for some
steps on the large and the small set in turns. The first run on the large `.arrow` makes its index.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, parser
from repeated import packed_lines, write_file, write_folder

SPEC = "[1,48,0,1 Cr3,3,8 Mp4,4 S1(1x0)1,3 Lbx16]"
SMALL = 10 << 20
FORMS = ("arrow", "webdataset", "file")
SCRIPT = Path(__file__).parent / "measured_train.py"


def written(form: str, target: Path, lines: Sequence[Any], size: int) -> Path:
    """A data set of about ``size`` bytes."""
    if form == "file":
        return write_file(target.with_suffix(".arrow"), lines, size)
    return write_folder(target, lines, size, form)


def measured(dataset: Path, folder: Path, steps: int) -> dict[str, Any]:
    """The report of `ketos train` on the data set."""
    report, run = folder / "report.json", folder / "run"
    # Without validations, which the small set would reach and the large one not.
    train = ["train", "-f", "binary", "-B", "16", "-q", "fixed", "-N", "1000", "-F", "1000", "-s", SPEC]
    words = [sys.executable, str(SCRIPT), str(report), str(steps), "--workers", "1", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*words, *train, "-o", str(run), str(dataset)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    shutil.rmtree(run)
    found: dict[str, Any] = json.loads(report.read_bytes())
    return found


def compare(form: str, arguments: argparse.Namespace, lines: Sequence[Any], folder: Path) -> dict[str, Any]:
    """What the large and the small data set of a form took, each the best of the repeats."""
    sizes = {"large": arguments.size, "small": min(SMALL, arguments.size)}
    datasets = {name: written(form, folder / f"{form}-{name}", lines, size) for name, size in sizes.items()}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
    for _ in range(arguments.repeat):
        for name, dataset in datasets.items():
            runs[name].append(measured(dataset, folder, arguments.steps))
    for dataset in datasets.values():
        (shutil.rmtree if dataset.is_dir() else Path.unlink)(dataset)
    result: dict[str, Any] = {"first_run_seconds": runs["large"][0]["first_batch_seconds"]}
    for name, found in runs.items():
        result[f"{name}_seconds"] = min(run["first_batch_seconds"] for run in found)
        result[f"{name}_resident"] = min(run["resident"] for run in found)
        result[f"{name}_peaks"] = found[-1]["last"]["VmHWM"]
    return result


def main() -> None:
    """Print a row for each form."""
    sys.path.insert(0, str(ROOT))
    from distrib.config.sizes import parse_size

    options = parser(__doc__ or "")
    options.add_argument("--size", default="200M", help="bytes of the large data set, such as 10G")
    options.add_argument("--steps", type=int, default=300, help="steps to run")
    options.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS, help="forms to measure")
    options.add_argument("--scratch", type=Path, help="folder with room for the data sets")
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    arguments.size = parse_size(arguments.size, option="--size")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        # Arrow files are written twice, and the small set needs its room too.
        if shutil.disk_usage(folder).free < 2.5 * arguments.size:
            sys.exit(f"There is no room for {arguments.size} bytes in {folder}; name a --scratch folder.")
        lines = packed_lines(arguments.data, folder)
        found = {}
        for form in arguments.forms:
            found[form] = compare(form, arguments, lines, folder)
            if not arguments.json:
                print_row(form, found[form], arguments)
    if arguments.json:
        print(json.dumps(found))


def print_row(form: str, row: dict[str, Any], arguments: argparse.Namespace) -> None:
    """What was measured of a form, the large data set first."""
    print(f"\nketos train, {form}, {arguments.size >> 20} and {SMALL >> 20} MiB, {arguments.steps} steps")
    print(f"  seconds to the first batch   {row['large_seconds']:.2f}, {row['small_seconds']:.2f}", end="")
    print(f" (first run of all {row['first_run_seconds']:.2f})")
    print(f"  resident, all processes, MiB {row['large_resident']}, {row['small_resident']}")
    print(f"  most each process held, MiB  {row['large_peaks']}, {row['small_peaks']}", flush=True)


if __name__ == "__main__":
    main()
