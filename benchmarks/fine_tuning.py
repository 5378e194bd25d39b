"""Fine-tuning from weights that kraken trained against training from scratch, at the same number of steps.

    python benchmarks/fine_tuning.py --base WEIGHTS [--kraken PATH_TO_KETOS] [--data FOLDER] [--epochs N]
                                     [--seeds N] [--sets NAME …] [--keep FILE.json]

``--base`` is a weights file that the peer has trained on other lines, of the network ``--spec``.
With ``--kraken`` the fine-tuned weights are tested by both programs.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from common import OURS, one_core, parser
from curves import Curves, best_weights, learn, learning_options, start
from real_sets import SETS, at_hand, compiled

_ERRORS = re.compile(r"(\d+)\s+Errors", re.IGNORECASE)


def errors(program: list[str], weights: Path, dataset: Path) -> str:
    """Errors that a program's `ketos test` counts."""
    words = [*program, "--workers", "1", "test", "-m", weights, "-f", "binary", dataset]
    done = subprocess.run(
        [str(word) for word in words], check=True, capture_output=True, text=True, env=one_core()
    )
    found = _ERRORS.search(done.stdout)
    return found.group(1) if found else done.stdout[:500]


def main() -> None:
    """Train, and print a table for each set."""
    options = parser(__doc__ or "")
    learning_options(options, epochs=6, seeds=3)
    arguments = options.parse_args()
    if arguments.base is None:
        options.error("--base is missing: the weights to fine-tune")
    curves = Curves(arguments.keep)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title in at_hand(arguments.sets or SETS, arguments.data):
            training, validation = compiled(title, arguments.data, folder, program=OURS)
            for seed in range(1, arguments.seeds + 1):
                top = f"--workers 1 --threads 1 --seed {seed} train -f binary -B 8 -r 1e-3 -q fixed"
                words = [*shlex.split(top), "-N", arguments.epochs, "-t", training, "-e", validation]
                starts = {
                    "from scratch": ["-s", arguments.spec],
                    "fine-tuned, union": start(arguments),
                }
                for what, begin in starts.items():
                    given = [*words, *begin]
                    curves.take(f"{title}/{what}/{seed}", partial(learn, given), folder)
                tuned = folder / f"{title}-fine-tuned, union-{seed}"
                if arguments.kraken and tuned.is_dir():
                    dataset = Path(validation.read_text(encoding="utf-8").strip())
                    weights = best_weights(tuned)
                    ours, theirs = (errors([*each], weights, dataset) for each in (OURS, arguments.kraken))
                    print(f"{title}, seed {seed}: errors of the same weights, ours {ours}, kraken {theirs}")
            curves.show(title)


if __name__ == "__main__":
    main()
