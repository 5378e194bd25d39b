"""Lines a second handed over as network input, one core, beside kraken's data set class where it is at hand.

    python benchmarks/delivery.py [--kraken PATH_TO_KETOS] [--data FOLDER] [--seconds S] [--repeat N]

The same ground truth is compiled by each program; each reads what its own compile made (ours: shards of
normalised lines, Arrow and tar), then both read the raw `.arrow` that kraken compiled, ours also with a
line cache that a first epoch has filled. Boxes come from fraktur-lines, baselines from print16-alto, or both
from the drawn sample. Height 120, as the default network has it.

All runs on one core, in turns. Seconds are those of the processor, so that other work on the machine hardly
counts; everything read is in the page cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import OURS, ROOT, parser, use_one_thread

HEIGHT = 120
BATCH = 16
PEER = "kraken, its .arrow"
CACHED = "ours, that .arrow, cached"
KRAKEN_SCRIPT = Path(__file__).parent / "kraken_delivery.py"


def sources(data: Path, scratch: Path) -> dict[str, tuple[str, list[Path]]]:
    """For each line type its format and ground truth files: real ones, else drawn."""
    boxes = [path for pattern in ("*.png", "*.jpg") for path in (data / "fraktur-lines").glob(pattern)]
    pages = list((data / "print16-alto").glob("**/*.xml"))
    if not (boxes and pages):
        from distrib.ground_truth.sample import write_sample

        write_sample(scratch / "sample", pairs=200, pages=16)
        boxes = list((scratch / "sample" / "lines").glob("*.png"))
        pages = list((scratch / "sample" / "alto").glob("*.xml"))
    return {"bbox": ("path", sorted(boxes)), "baselines": ("alto", sorted(pages))}


def compiled(program: Sequence[str], files: Sequence[Path], form: str, output: Path, *more: str) -> Path:
    """``output`` as the program compiles it from the files."""
    manifest = output.with_suffix(".lst")
    manifest.write_text("\n".join(map(str, files)), encoding="utf-8")
    words = [*program, "--workers", "1", "compile", "-f", form, "-o", str(output), *more, "-F", str(manifest)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(words, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return output


def reader_of(dataset: Path, line_type: str, cache: Path | None = None) -> Any:
    """A reader of the data set as training has it."""
    from distrib.ground_truth.network_input import NetworkInput
    from distrib.ground_truth.text import TextPipeline
    from distrib.shards.storage import ShardStorage
    from distrib.stream.batches import BatchReader
    from distrib.stream.line_cache import LineCache
    from distrib.stream.lines import open_collection

    return BatchReader(
        collection=open_collection([str(dataset)], ShardStorage(None)),
        network_input=NetworkInput(height=HEIGHT, centerline=line_type == "bbox"),
        text_pipeline=TextPipeline(normalize_whitespace=True, reorder=True),
        encode=lambda text: [ord(character) for character in text],
        steps_needed=len,
        cache=None if cache is None else LineCache(cache, line_type, 1 << 30),
    )


def batches_of(reader: Any) -> list[Any]:
    """Line numbers of the whole data set, a batch at a time."""
    import numpy as np

    lines = len(reader.collection)
    return np.split(np.arange(lines), range(BATCH, lines, BATCH))


def our_rate(dataset: Path, line_type: str, seconds: float, cache: Path | None = None) -> float:
    """Lines a processor second of our reader over whole batches of 16, in this process."""
    reader = reader_of(dataset, line_type, cache)
    batches = batches_of(reader)
    for batch in batches if cache is not None else batches[:1]:
        reader(batch)
    lines, number, started = 0, 0, time.process_time()
    while time.process_time() - started < seconds:
        batch = batches[number % len(batches)]
        assert len(reader(batch).lines) == len(batch), "a line of the benchmark could not be read"
        lines, number = lines + len(batch), number + 1
    return lines / (time.process_time() - started)


def kraken_rate(kraken: Sequence[str], dataset: Path, line_type: str, seconds: float) -> float:
    """The same of kraken's data set class, in a process of its own."""
    python = Path(kraken[0]).parent / "python"
    words = [python, KRAKEN_SCRIPT, dataset, line_type, str(HEIGHT), str(seconds)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


@contextmanager
def counted_normalisations() -> Iterator[list[int]]:
    """How many lines are straightened or scaled inside the block."""
    from distrib.ground_truth import network_input

    calls = [0]
    own = (network_input.normalize_centerline, network_input._resize)

    def counting(function: Any, *, scales: bool) -> Any:
        def call(image: Any, size: Any) -> Any:
            calls[0] += not scales or image.size != size
            return function(image, size)

        return call

    network_input.normalize_centerline = counting(own[0], scales=False)
    network_input._resize = counting(own[1], scales=True)
    try:
        yield calls
    finally:
        network_input.normalize_centerline, network_input._resize = own


def normalised_in_epochs(dataset: Path, line_type: str, cache: Path, epochs: int = 2) -> list[int]:
    """Lines straightened or scaled in each epoch, every epoch with a reader of its own on one cache."""
    found = []
    for _ in range(epochs):
        reader = reader_of(dataset, line_type, cache)
        with counted_normalisations() as calls:
            for batch in batches_of(reader):
                reader(batch)
        found.append(calls[0])
    return found


def main() -> None:
    """Print lines a second and ratios for both line types."""
    options = parser(__doc__ or "")
    options.add_argument("--seconds", type=float, default=6.0, help="seconds of each measurement")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    use_one_thread(pin=True)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for line_type, (form, files) in sources(arguments.data, folder).items():
            arrow = compiled(OURS, files, form, folder / line_type, "--shard-format", "arrow")
            tar = compiled(OURS, files, form, folder / f"{line_type}-tar", "--shard-format", "webdataset")
            raw = compiled(arguments.kraken or OURS, files, form, folder / f"{line_type}-raw.arrow")
            best: dict[str, float] = {}
            for _ in range(arguments.repeat):
                seconds = arguments.seconds
                rates = {
                    "ours, its Arrow shards": our_rate(arrow, line_type, seconds),
                    "ours, its tar shards": our_rate(tar, line_type, seconds),
                    "ours, that .arrow": our_rate(raw, line_type, seconds),
                    CACHED: our_rate(raw, line_type, seconds, folder / "cache"),
                }
                if arguments.kraken:
                    rates[PEER] = kraken_rate(arguments.kraken, raw, line_type, seconds)
                best = {who: max(rate, best.get(who, 0.0)) for who, rate in rates.items()}
            print(f"\ndelivery, {line_type}\n{'reader':28} {'lines/s':>8} {'ms/line':>8} {'ratio':>6}")
            for who, rate in best.items():
                ratio = f"{rate / best[PEER]:6.1f}" if PEER in best else ""
                print(f"{who:28} {rate:8.1f} {1000 / rate:8.2f} {ratio}")
            found = normalised_in_epochs(raw, line_type, folder / "counted")
            print(f"lines straightened or scaled with a cache, epoch by epoch: {found}")


if __name__ == "__main__":
    main()
