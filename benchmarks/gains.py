"""What each of the options that make learning easier gives: accuracy on real lines with it and without.

    python benchmarks/gains.py [--data FOLDER] [--epochs N] [--seeds N] [--sets NAME …] [--options NAME …]
                               [--base WEIGHTS] [--keep FILE.json]

All else is equal: data, split, network, rate, epochs, seeds.
"""

from __future__ import annotations

import shlex
import tempfile
from functools import partial
from pathlib import Path

from common import OURS, parser
from curves import Curves, learn, learning_options, start
from real_sets import SETS, at_hand, compiled

OPTIONS = {
    "plain": "",
    "ema": "--ema 0.99",
    "shortcut": "--shortcut 0.1",
    "span-masks": "--span-masks 0.1",
    "label-smoothing": "--label-smoothing 0.05",
    "augment": "--augment",
    "cosine": "--schedule cosine --warmup 50",
}


def main() -> None:
    """Train, and print a table for each set."""
    options = parser(__doc__ or "")
    learning_options(options, epochs=20, seeds=2)
    options.add_argument("--options", nargs="+", default=list(OPTIONS), help="options to try, by name")
    arguments = options.parse_args()
    curves = Curves(arguments.keep)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title in at_hand(arguments.sets or SETS, arguments.data):
            training, validation = compiled(title, arguments.data, folder, program=OURS)
            for seed in range(1, arguments.seeds + 1):
                for what in arguments.options:
                    extra = OPTIONS[what].replace("cosine", f"cosine --cos-max {arguments.epochs}")
                    top = (
                        f"--workers 0 --threads 1 --seed {seed} train -f binary -B 4 -r 1e-3 -q fixed {extra}"
                    )
                    words = [*shlex.split(top), "-N", arguments.epochs, *start(arguments)]
                    words += ["-t", training, "-e", validation]
                    curves.take(f"{title}/{what}/{seed}", partial(learn, words), folder)
            curves.show(title)


if __name__ == "__main__":
    main()
