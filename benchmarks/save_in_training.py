"""What checkpoints cost `ketos train` with the default network: the stall of each, and of steps beside them.

    python benchmarks/save_in_training.py [--processes N] [--strategy NAME] [--every N] [--data F] [--json]

Real lines (print16-alto, else drawn ones), one epoch, a checkpoint every few steps. Steps are of different
widths, so their seconds are compared by the line columns they computed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import OURS, ROOT, parser
from repeated import packed_lines, write_file


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained(arguments: Any, folder: Path) -> dict[str, float]:
    """Train and look at what the run recorded of its steps and saves; milliseconds."""
    dataset = write_file(folder / "lines.arrow", packed_lines(arguments.data, folder), arguments.bytes)
    launch = list(OURS)
    if arguments.processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        launch = [sys.executable, *torchrun, str(arguments.processes), "-m", "distrib"]
    learning = ["-f", "binary", "-B", "4", "-q", "fixed", "-N", "1", "--save-steps", str(arguments.every)]
    subprocess.run(
        [*launch, "train", *learning, "--strategy", arguments.strategy, "-o", folder / "run", dataset],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    saves = [row for row in rows(folder / "run" / "checkpoints.jsonl") if row.get("kind") == "interval"]
    saved = {row["step"] for row in saves}
    steps = rows(folder / "run" / "steps.jsonl")[1:]
    after = [row["seconds"] / row["lines"] for row in steps if row["step"] in saved]
    others = [row["seconds"] / row["lines"] for row in steps if row["step"] not in saved]
    return {
        "saves": len(saves),
        "megabytes": saves[0]["bytes"] / 1e6,
        "stall": statistics.median(row["stall_ms"] for row in saves),
        "longest_stall": max(row["stall_ms"] for row in saves),
        "written": 1000 * statistics.median(row["seconds"] for row in saves),
        "line_after_save": 1000 * statistics.median(after),
        "line_else": 1000 * statistics.median(others),
    }


def main() -> None:
    """Print the figures."""
    options = parser(__doc__ or "")
    options.add_argument("--processes", type=int, default=1, help="processes to train on")
    options.add_argument("--strategy", default="ddp", help="strategy to train under")
    options.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    options.add_argument("--bytes", type=int, default=4_000_000, help="bytes of lines to train on")
    options.add_argument("--json", action="store_true", help="print JSON")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        found = trained(arguments, Path(name))
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"\ncheckpoints while training, {arguments.strategy}, {arguments.processes} process(es)")
    print(f"  {found['saves']} saves of {found['megabytes']:.0f} MB, written in {found['written']:.0f} ms")
    print(f"  stall {found['stall']:.0f} ms, at most {found['longest_stall']:.0f} ms")
    print(f"  a line takes {found['line_after_save']:.0f} ms beside a save, {found['line_else']:.0f} ms else")


if __name__ == "__main__":
    main()
