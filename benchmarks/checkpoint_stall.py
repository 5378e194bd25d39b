"""How long training waits for a checkpoint: written before it goes on, and copied and written by a thread.

    python benchmarks/checkpoint_stall.py [--megabytes N ...] [--folder FOLDER] [--repeat N] [--json FILE]

States of the given sizes in float32 on the CPU, one thread; "first" is the first save, whose memory is new.
While the thread writes, the training thread takes small steps (matrix products and Python): how much slower
they are than between saves, and the longest, are what the thread costs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, parser, use_one_thread

TENSORS = 24


def state_of(megabytes: int) -> Any:
    """Tensors of ``megabytes`` in all, as a network of few layers has them."""
    import torch

    from distrib.runtime.state import LocalState, Piece

    length = megabytes * 1_000_000 // 4 // TENSORS
    pieces = {
        f"weights/layer{number}": Piece(shape=(length,), start=0, values=torch.randn(length))
        for number in range(TENSORS)
    }
    return LocalState(pieces=pieces, groups=[{"lr": 0.001}])


class Steps:
    """A training thread's work, timed step by step."""

    def __init__(self) -> None:
        import torch

        self._matrix = torch.randn(96, 96)
        self.seconds: list[float] = []

    def take(self) -> None:
        """One step, about a tenth of a millisecond."""
        began = time.perf_counter()
        self._matrix @ self._matrix
        sum(range(500))
        self.seconds.append(time.perf_counter() - began)


def synchronous(folder: Path, state: Any) -> float:
    """Seconds that training waits where it writes the checkpoint itself."""
    import torch

    from distrib.files import written_whole

    began = time.perf_counter()
    with written_whole(folder / "synchronous.ckpt") as file:
        torch.save({key: piece.values for key, piece in state.pieces.items()}, file)
    return time.perf_counter() - began


def background(store: Any, state: Any, name: str, usual: float) -> dict[str, float]:
    """What a save by the store costs the training thread, whose step takes ``usual`` seconds undisturbed."""
    from distrib.runtime.checkpoints.store import CheckpointFacts

    began = time.perf_counter()
    facts = CheckpointFacts(kind="interval", step=0, epoch=0, score=None)
    store.save(name, {}, state, facts)
    stall = time.perf_counter() - began
    steps = Steps()
    while store.votes() == (0, 0):
        steps.take()
    written = time.perf_counter() - began
    store.finish()
    slower = statistics.mean(steps.seconds) / usual - 1 if steps.seconds else 0.0
    longest = max(steps.seconds, default=0.0)
    return {"stall": stall, "slower": slower, "longest": longest, "written": written}


def measured(megabytes: int, folder: Path, repeat: int) -> dict[str, float]:
    """A row of the table: medians, in milliseconds but for ``slower`` (a share) and ``written`` (seconds)."""
    from distrib.runtime.checkpoints.store import CheckpointStore
    from distrib.runtime.processes import Processes
    from distrib.runtime.topology import Topology

    state = state_of(megabytes)
    store = CheckpointStore(folder, processes=Processes(Topology()), keep_best=1, keep_last=1, sharded=False)
    before, after = [], []
    for number in range(repeat + 1):
        before.append(synchronous(folder, state))
        usual = Steps()
        for _ in range(5000):
            usual.take()
        after.append(background(store, state, f"step_{number:08d}.ckpt", statistics.mean(usual.seconds)))
    middle = {key: statistics.median(each[key] for each in after[1:]) for key in after[0]}
    return {
        "megabytes": megabytes,
        "synchronous": 1000 * statistics.median(before[1:]),
        "first": 1000 * after[0]["stall"],
        "background": 1000 * middle["stall"],
        "longest": 1000 * middle["longest"],
        "slower": middle["slower"],
        "written": middle["written"],
    }


def main() -> None:
    """Print a row for each size."""
    options = parser(__doc__ or "")
    options.add_argument("--megabytes", type=int, nargs="+", default=[15, 50, 120, 500, 1200], help="sizes")
    options.add_argument("--folder", type=Path, help="where to write, on the disk in question")
    options.add_argument("--json", type=Path, help="file for the figures")
    arguments = options.parse_args()
    use_one_thread(pin=False)
    sys.path.insert(0, str(ROOT))
    import torch

    torch.set_num_threads(1)
    print(
        f"\n{'state':>8} {'synchronous':>12} {'first':>9} {'background':>11} {'ratio':>6} "
        f"{'steps slower':>13} {'longest':>9} {'written in':>11}"
    )
    rows = []
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            row = measured(megabytes, Path(folder), arguments.repeat)
            os.sync()
        rows.append(row)
        print(
            f"{megabytes:5} MB {row['synchronous']:9.0f} ms {row['first']:6.0f} ms "
            f"{row['background']:8.1f} ms {row['synchronous'] / row['background']:6.0f} "
            f"{row['slower']:12.1%} {row['longest']:6.1f} ms {row['written']:9.2f} s"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
