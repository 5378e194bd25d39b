"""One epoch of training and a validation, whole process, beside kraken's where it is at hand.

    python benchmarks/training.py [--kraken PATH_TO_KETOS] [--data FOLDER] [--spec SPEC] [--repeat N]

Both train on line images compiled by kraken's or our own compile, with the same network, batch size,
precision and threads: 120 lines of fraktur-lines, validated on 24 others, or the drawn sample.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path

from common import OURS, ROOT, best_seconds, parser, print_table

SMALL = "[1,48,0,1 Cr3,9,16 Mp2,2 Cr3,7,32 Mp2,2 S1(1x0)1,3 Lbx96 Do0.1,2 Lbx96 Do]"
PEER = "kraken"


def line_images(data: Path, scratch: Path) -> list[Path]:
    """144 line images: real ones, else drawn."""
    found = sorted((data / "fraktur-lines").glob("*.png"))[:144]
    if found:
        return found
    from distrib.ground_truth.sample import write_sample

    write_sample(scratch / "sample", pairs=144, pages=0)
    return sorted((scratch / "sample" / "lines").glob("*.png"))


def main() -> None:
    """Print a table for each precision."""
    options = parser(__doc__ or "")
    options.add_argument("--spec", default=SMALL, help="VGSL spec to train")
    options.add_argument("--precision", nargs="+", default=["32-true"], help="precisions to train in")
    options.add_argument("--threads", type=int, default=2, help="threads to compute with")
    options.add_argument("-B", "--batch-size", default="16", help="lines of a batch")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = line_images(arguments.data, folder)
        manifests = {"train.lst": images[:120], "val.lst": images[120:]}
        for manifest, paths in manifests.items():
            (folder / manifest).write_text("\n".join(map(str, paths)), encoding="utf-8")
        for precision in arguments.precision:
            commands = {}
            for who, program in (("ours", OURS), (PEER, arguments.kraken)):
                if not program:
                    continue
                data = ["-t", f"{folder}/train.lst", "-e", f"{folder}/val.lst", "-f", "path"]
                learning = ["-B", arguments.batch_size, "-q", "fixed", "-N", "1", "-s", arguments.spec]
                top = ["--precision", precision, "--workers", "1", "--threads", str(arguments.threads)]
                train = shlex.join([*program, *top, "train", *learning, *data, "-o"])
                # A run directory belongs to one run.
                commands[who] = ["sh", "-ec", f"{train} $(mktemp -d {folder}/{who}-XXXX)/run"]
            best = best_seconds(commands, repeat=arguments.repeat, threads=arguments.threads)
            print_table(f"train one epoch, {precision}", best, lines=120, peer=PEER)


if __name__ == "__main__":
    main()
