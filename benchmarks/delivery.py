"""Lines a second handed over as network input, one core, beside kraken's data set class where it is at hand.

    python benchmarks/delivery.py [--kraken PATH_TO_KETOS] [--data FOLDER] [--seconds S] [--repeat N]

The same ground truth is compiled by each program; each reads what its own compile made (ours: shards of
normalised lines, Arrow and tar), then both read the raw `.arrow` that kraken compiled, ours also with a
line cache that a first epoch has filled. Boxes come from fraktur-lines, baselines from print16-alto, or both
from the drawn sample. Height 120, as the default network has it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import OURS, ROOT, parser

HEIGHT = 120
KRAKEN_SCRIPT = Path(__file__).parent / "kraken_delivery.py"


def sources(data: Path, scratch: Path) -> dict[str, tuple[str, list[Path]]]:
    """For each line type its format and ground truth files: real ones, else drawn."""
    boxes = sorted((data / "fraktur-lines").glob("*.png"))
    pages = sorted((data / "print16-alto").glob("*.xml"))
    if not (boxes and pages):
        from distrib.ground_truth.sample import write_sample

        write_sample(scratch / "sample", pairs=200, pages=16)
        boxes = sorted((scratch / "sample" / "lines").glob("*.png"))
        pages = sorted((scratch / "sample" / "alto").glob("*.xml"))
    return {"bbox": ("path", boxes), "baselines": ("alto", pages)}


def compiled(program: Sequence[str], files: Sequence[Path], form: str, output: Path, *more: str) -> Path:
    """``output`` as the program compiles it from the files."""
    manifest = output.with_suffix(".lst")
    manifest.write_text("\n".join(map(str, files)), encoding="utf-8")
    words = [*program, "--workers", "1", "compile", "-f", form, "-o", str(output), *more, "-F", str(manifest)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return output


def our_rate(dataset: Path, line_type: str, seconds: float, cache: Path | None = None) -> float:
    """Lines a second of our reader over whole batches of 16, in this process."""
    import torch

    from distrib.ground_truth.network_input import NetworkInput
    from distrib.ground_truth.text import TextPipeline
    from distrib.shards.storage import ShardStorage
    from distrib.stream.batches import BatchReader
    from distrib.stream.line_cache import LineCache
    from distrib.stream.lines import open_collection

    torch.set_num_threads(1)
    collection = open_collection([str(dataset)], ShardStorage(None))
    reader = BatchReader(
        collection=collection,
        network_input=NetworkInput(height=HEIGHT, centerline=line_type == "bbox"),
        text_pipeline=TextPipeline(normalize_whitespace=True, reorder=True),
        encode=lambda text: [ord(character) for character in text],
        steps_needed=len,
        cache=None if cache is None else LineCache(cache, line_type, 1 << 30),
    )
    batches = np.split(np.arange(len(collection)), range(16, len(collection), 16))
    for batch in batches if cache is not None else batches[:1]:
        reader(batch)
    lines, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        batch = batches[lines // 16 % len(batches)]
        assert len(reader(batch).lines) == len(batch), "a line of the benchmark could not be read"
        lines += len(batch)
    return lines / (time.perf_counter() - started)


def main() -> None:
    """Print lines a second and ratios for both line types."""
    options = parser(__doc__ or "")
    options.add_argument("--seconds", type=float, default=6.0, help="seconds of each measurement")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for line_type, (form, files) in sources(arguments.data, folder).items():
            own = {
                "ours, Arrow shards": compiled(
                    OURS, files, form, folder / line_type, "--shard-format", "arrow"
                ),
                "ours, tar shards": compiled(
                    OURS, files, form, folder / f"{line_type}-tar", "--shard-format", "webdataset"
                ),
            }
            raw = folder / f"{line_type}-raw.arrow"
            compiled(arguments.kraken or OURS, files, form, raw)
            rates: dict[str, float] = {}
            for _ in range(arguments.repeat):
                measured = {who: our_rate(path, line_type, arguments.seconds) for who, path in own.items()}
                measured["ours, raw .arrow"] = our_rate(raw, line_type, arguments.seconds)
                measured["ours, raw .arrow, cached"] = our_rate(
                    raw, line_type, arguments.seconds, folder / "cache"
                )
                if arguments.kraken:
                    python = Path(arguments.kraken[0]).resolve().parent / "python"
                    words = [python, KRAKEN_SCRIPT, raw, line_type, str(HEIGHT), str(arguments.seconds)]
                    done = subprocess.run(words, check=True, capture_output=True, text=True)
                    measured["kraken, its .arrow"] = float(done.stdout.split()[-1])
                rates = {who: max(rate, rates.get(who, 0.0)) for who, rate in measured.items()}
            peer = rates.get("kraken, its .arrow")
            print(f"\ndelivery, {line_type}\n{'reader':28} {'lines/s':>8} {'ms/line':>8} {'ratio':>6}")
            for who, rate in rates.items():
                ratio = f"{rate / peer:6.2f}" if peer else ""
                print(f"{who:28} {rate:8.1f} {1000 / rate:8.2f} {ratio}")


if __name__ == "__main__":
    main()
