"""What the order of an epoch costs in padding, how far it is from a plain shuffle, and what planning takes.

    python benchmarks/order.py [--data FOLDER] [--epochs N] [--lines N]

Padding is that of the micro-batches a process computes on, for each world size and batch size, on
fraktur-lines (boxes, straightened) and print16-alto (baselines), else on drawn ones, at heights 120 and 48.
Beside ours stand a plain shuffle and batches of strictly sorted widths that are shuffled themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, parser
from delivery import sources

HEIGHTS = (120, 48)
WORLD_SIZES = (1, 2, 4)
BATCH_SIZES = (4, 16)

PLANNING = """
import json, resource, sys, time
import numpy as np
from distrib.stream.plan import EpochPlan, PlanSettings

lines, whole = int(sys.argv[1]), sys.argv[2] == "whole"

class Widths:
    # Made on demand: what a mapped index would give, without 400 MB of numbers in memory.
    def __getitem__(self, part):
        return (np.arange(part.start, part.stop) * 2654435761 % 3000 + 200).astype(np.int32)

began = time.process_time()
settings = PlanSettings(global_lines=256)
plan = EpochPlan(np.full(lines // 5000, 5000), Widths(), settings=settings, seed=1, epoch=0)
made = time.process_time() - began
first = next(plan.batches(plan.steps // 2))
window = time.process_time() - began - made
seen = sum(batch.size for batch in plan.batches()) if whole else 0
print(json.dumps({
    "plan_seconds": made, "window_seconds": window,
    "epoch_seconds": time.process_time() - began - made - window,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "lines": seen,
}))
"""


def columns(files: Sequence[Path], form: str, line_type: str, height: int) -> Any:
    """The true widths (N,) of lines as network input, padding of 16 columns on each side included."""
    from distrib.ground_truth.network_input import normalized_line
    from distrib.ground_truth.reader import read_line_images
    from distrib.ground_truth.records import LineImage

    found = []
    for path in files:
        linetype = None
        for line in read_line_images(path, format_type=form, linetype=linetype, legacy_polygons=False):
            if isinstance(line, LineImage):
                image = normalized_line(line.image, height=height, centerline=line_type == "bbox")
                found.append(image.width + 32)
    return np.array(found, dtype=np.int32)


def plain(lines: int, batch: int, epoch: int) -> list[Any]:
    """Batches of a plain shuffle."""
    order = np.random.default_rng(epoch).permutation(lines)
    return np.split(order, range(batch, lines, batch))


def sorted_batches(widths: Any, batch: int, epoch: int) -> list[Any]:
    """Batches cut from strictly sorted widths, shuffled."""
    cut = np.split(np.argsort(widths, kind="stable"), range(batch, widths.size, batch))
    return [cut[number] for number in np.random.default_rng(epoch).permutation(len(cut))]


def ours(widths: Any, batch: int, epoch: int) -> list[Any]:
    """The global batches of our plan."""
    from distrib.stream.plan import EpochPlan, PlanSettings

    settings = PlanSettings(global_lines=batch)
    return list(EpochPlan([widths.size], widths, settings=settings, seed=42, epoch=epoch).batches())


def efficiency(widths: Any, steps: Sequence[Any], world_size: int, batch: int) -> tuple[float, float, float]:
    """(real over padded columns, mean over busiest load of the ranks, micro-batches of a rank a step)."""
    from distrib.stream.micro_batches import split_step
    from distrib.stream.order_measures import load_balance, padding_efficiency

    pieces, loads, count = [], [], 0
    for step in steps:
        ranks = split_step(widths[step], world_size=world_size, max_lines=batch, max_pixels=0, height=1)
        own = [[step[part] for part in rank] for rank in ranks]
        pieces += [part for rank in own for part in rank]
        loads.append(load_balance(widths, own))
        count += len(ranks[0])
    return padding_efficiency(widths, pieces), float(np.mean(loads)), count / len(steps)


def print_padding(name: str, widths: Any, epochs: int) -> None:
    """The padding table of a line set."""
    from distrib.stream import order_measures as measures

    print(f"\n{name}: {widths.size} lines, mean width {widths.mean():.0f}, {epochs} epochs")
    print(f"{'-B':>3} {'processes':>9} {'plain':>6} {'sorted':>6} {'ours':>6} {'balance':>7} {'micro':>6}")
    for batch in BATCH_SIZES:
        for world_size in WORLD_SIZES:
            size = batch * world_size
            shuffled = [
                measures.padding_efficiency(widths, plain(widths.size, batch, epoch))
                for epoch in range(epochs)
            ]
            strict = measures.padding_efficiency(widths, sorted_batches(widths, batch, 0))
            own = [
                efficiency(widths, ours(widths, size, epoch), world_size, batch) for epoch in range(epochs)
            ]
            fill, balance, micro = np.mean(own, axis=0)
            print(
                f"{batch:>3} {world_size:>9} {np.mean(shuffled):6.3f} {strict:6.3f} {fill:6.3f} "
                f"{balance:7.3f} {micro:6.2f}"
            )
    print(f"{'-B':>3} {'order':>9} {'reunion':>8} {'drift':>6} {'succession':>10} {'clustering':>10}")
    for batch in BATCH_SIZES:
        orders = {
            "plain": lambda epoch, batch=batch: plain(widths.size, batch, epoch),
            "sorted": lambda epoch, batch=batch: sorted_batches(widths, batch, epoch),
            "ours": lambda epoch, batch=batch: ours(widths, batch, epoch),
        }
        for order, make in orders.items():
            steps = [make(epoch) for epoch in range(epochs + 1)]
            rows = [
                (
                    measures.reunion_rate(first, second),
                    abs(measures.width_drift(widths, first)),
                    abs(measures.width_succession(widths, first)),
                    measures.width_clustering(widths, first),
                )
                for first, second in pairwise(steps)
            ]
            reunion, drift, succession, clustering = np.mean(rows, axis=0)
            print(f"{batch:>3} {order:>9} {reunion:8.1f} {drift:6.2f} {succession:10.2f} {clustering:10.2f}")


def planning(lines: int, *, whole: bool) -> dict[str, float]:
    """Processor seconds and memory of planning so many lines, in a process of its own."""
    words = [sys.executable, "-c", PLANNING, str(lines), "whole" if whole else "window"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print padding, the measures of the order, and what planning costs."""
    options = parser(__doc__ or "")
    options.add_argument("--epochs", type=int, default=5, help="epochs to take the mean of")
    options.add_argument("--lines", type=int, default=10_000_000, help="lines of the planned epoch")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        for line_type, (form, files) in sources(arguments.data, Path(name)).items():
            for height in HEIGHTS:
                widths = columns(files, form, line_type, height)
                print_padding(f"{line_type}, height {height}", widths, arguments.epochs)
    print(f"\n{'planning':24} {'plan s':>7} {'a window s':>10} {'whole epoch s':>13} {'peak MiB':>8}")
    for lines, whole in ((arguments.lines, True), (10 * arguments.lines, False)):
        row = planning(lines, whole=whole)
        epoch = f"{row['epoch_seconds']:.2f}" if whole else ""
        print(
            f"{lines:24,} {row['plan_seconds']:7.2f} {row['window_seconds']:10.3f} {epoch:>13} "
            f"{row['peak_mib']:8.0f}"
        )


if __name__ == "__main__":
    main()
