"""Reading by worker processes, by threads or by the training process itself, lines/s of wall-clock time.

    python benchmarks/loader.py [--data FOLDER] [--repeat N] [--seconds S]

Two data sets: shards of normalised baselines, where a line is decoding its PNG, and raw boxes, where it is
straightening. Each is read by a consumer that only takes batches, and by one that computes on each with one
thread, as training does. Threads are no part of the product: a pool that reads ahead as far as workers do.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from common import OURS, ROOT, parser, use_one_thread
from delivery import batches_of, compiled, reader_of, sources

AHEAD = 4
"""Batches that each worker or thread has ready or under way."""


def by_processes(reader: Any, batches: Iterator[Any], workers: int) -> Iterator[Any]:
    """As the product reads; 0 workers is the process itself."""
    from distrib.stream.loader import _data_loader, _Queue

    queue = _Queue()
    queue.items = batches
    return iter(_data_loader(reader, queue, workers=workers, pin_memory=False, persistent=False))


def by_threads(reader: Any, batches: Iterator[Any], workers: int) -> Iterator[Any]:
    """In order, by a pool of threads of this process."""
    with ThreadPoolExecutor(workers) as pool:
        under_way = deque(pool.submit(reader, batch) for batch in islice(batches, AHEAD * workers))
        try:
            while under_way:
                yield under_way.popleft().result()
                under_way.extend(pool.submit(reader, batch) for batch in islice(batches, 1))
        finally:
            for future in under_way:
                future.cancel()


def taking(_: Any) -> None:
    """A consumer that does nothing with a batch."""


def computing() -> Callable[[Any], None]:
    """A consumer that trains a small convolution on each batch."""
    import torch

    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(4), torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3)
    )

    def consume(batch: Any) -> None:
        network(batch.images.float().div(255)).square().mean().backward()

    return consume


def rate(delivered: Iterator[Any], consume: Callable[[Any], None], seconds: float) -> float:
    """Lines a second of wall-clock time once the first batches have come."""
    for _ in range(2):
        consume(next(delivered))
    lines, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        batch = next(delivered)
        consume(batch)
        lines += len(batch.lines)
    found = lines / (time.perf_counter() - began)
    if hasattr(delivered, "close"):
        delivered.close()
    return found


def main() -> None:
    """Print lines a second for each data set, consumer and kind of reader."""
    options = parser(__doc__ or "")
    options.add_argument("--seconds", type=float, default=4.0, help="seconds of each measurement")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    use_one_thread(pin=False)
    import torch

    torch.set_num_threads(1)
    kinds: dict[str, tuple[Callable[..., Iterator[Any]], int]] = {
        "in the process itself": (by_processes, 0),
        "1 worker process": (by_processes, 1),
        "2 worker processes": (by_processes, 2),
        "1 thread": (by_threads, 1),
        "2 threads": (by_threads, 2),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = sources(arguments.data, folder)
        boxes, pages = found["bbox"], found["baselines"]
        shards = compiled(OURS, pages[1], pages[0], folder / "shards", "--shard-format", "arrow")
        raw = compiled(OURS, boxes[1], boxes[0], folder / "raw.arrow")
        print(f"\n{'reader, lines/s':24} {'shards':>16} {'raw boxes':>16}   (only taking, computing)")
        best: dict[str, list[float]] = {kind: [0.0] * 4 for kind in kinds}
        for _ in range(arguments.repeat):
            for kind, (deliver, workers) in kinds.items():
                rates = []
                for dataset, line_type in ((shards, "baselines"), (raw, "bbox")):
                    for consume in (taking, computing()):
                        reader = reader_of(dataset, line_type)
                        batches = cycle(batches_of(reader))
                        rates.append(rate(deliver(reader, batches, workers), consume, arguments.seconds))
                best[kind] = [max(pair) for pair in zip(best[kind], rates, strict=True)]
        for kind, (a, b, c, d) in best.items():
            print(f"{kind:24} {f'{a:.0f}, {b:.0f}':>16} {f'{c:.0f}, {d:.0f}':>16}")


if __name__ == "__main__":
    main()
