"""Compiling ground truth, whole process, beside kraken's compile where it is at hand.

    python benchmarks/compile.py [--kraken PATH_TO_KETOS] [--data FOLDER] [--repeat N]

Without the real collections the drawn sample is compiled. A second table compares raw lines with normalised
ones: what compiling takes, how large the file is, and what a line then costs when it is read for training.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import OURS, ROOT, best_seconds, parser, print_table, use_one_thread
from delivery import our_rate

PEER = "kraken, 1 worker"


def collections(data: Path, scratch: Path) -> dict[tuple[str, str], Sequence[Path]]:
    """Sources by (name, format): the real collections under ``data``, else the drawn sample."""
    images = [path for pattern in ("*.png", "*.jpg") for path in (data / "fraktur-lines").glob(pattern)]
    found = {
        ("print16-alto", "alto"): sorted((data / "print16-alto").glob("**/*.xml")),
        ("fraktur-lines", "path"): sorted(images),
    }
    found = {key: sources for key, sources in found.items() if sources}
    if found:
        return found
    from distrib.ground_truth.sample import write_sample

    write_sample(scratch / "sample", pairs=400, pages=12)
    return {
        ("sample pages", "xml"): sorted((scratch / "sample").glob("[ap]*/*.xml")),
        ("sample lines", "path"): sorted((scratch / "sample" / "lines").glob("*.png")),
    }


def main() -> None:
    """Print a table for each collection."""
    arguments = parser(__doc__ or "").parse_args()
    sys.path.insert(0, str(ROOT))
    use_one_thread(pin=False)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out.arrow")
        for (name, format_type), sources in collections(arguments.data, Path(folder)).items():
            rest = ["compile", "-f", format_type, "-o", str(output), *map(str, sources)]
            commands = {f"ours, {n} worker(s)": [*OURS, "--workers", str(n), *rest] for n in (1, 2)}
            if arguments.kraken:
                commands[PEER] = [*arguments.kraken, "--workers", "1", *rest]
            best = best_seconds(commands, repeat=arguments.repeat)
            print_table(f"compile {name}", best, lines=lines_of(output), peer=PEER)
            compare_lines(rest, "bbox" if format_type == "path" else "baselines", output, arguments.repeat)


def lines_of(dataset: Path) -> int:
    """How many lines a data set has."""
    from distrib.stream.lines import open_collection

    return len(open_collection([dataset]))


def compare_lines(rest: Sequence[str], line_type: str, output: Path, repeat: int) -> None:
    """Print seconds, bytes and reading time of raw and of normalised lines."""
    print(f"{'lines':12} {'compile, s':>10} {'kB/line':>8} {'read, ms/line':>13}")
    for kind in ("raw", "normalized"):
        words = [*OURS, "--workers", "1", *rest, "--lines", kind]
        seconds = best_seconds({kind: words}, repeat=repeat)[kind]
        size = output.stat().st_size / lines_of(output) / 1000
        rate = max(our_rate(output, line_type, 2.0) for _ in range(repeat))
        print(f"{kind:12} {seconds:10.1f} {size:8.1f} {1000 / rate:13.2f}")


if __name__ == "__main__":
    main()
