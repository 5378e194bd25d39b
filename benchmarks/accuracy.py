"""Accuracy epoch by epoch beside kraken's: the same data, split, network and settings for both.

    python benchmarks/accuracy.py --kraken PATH_TO_KETOS [--data FOLDER] [--epochs N] [--seeds N]
                                  [--sets NAME …] [--base WEIGHTS] [--keep FILE.json]

Both train on data sets that the peer has compiled where it is at hand, else on our own. The peer's curve is
read from its TensorBoard log, so the package tensorboard must be in its environment.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import OURS, one_core, parser
from curves import Curves, learn, learning_options, start
from real_sets import SETS, at_hand, compiled

_READ_LOG = """
import glob, json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
(name,) = glob.glob(sys.argv[1] + "/**/events.*", recursive=True)
log = EventAccumulator(name)
log.Reload()
print(json.dumps([each.value for each in log.Scalars("val_accuracy")]))
"""


def peer_curve(program: Sequence[str], words: Sequence[object], run: Path) -> list[float]:
    """Validation accuracy after each epoch of the peer."""
    log = run / "log"
    log.mkdir(parents=True)
    command = [*program, *words, "--logger", "tensorboard", "--log-dir", log, "-o", run / "model"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, env=one_core(), cwd=run)
    python = Path(program[0]).with_name("python")
    read = subprocess.run([python, "-c", _READ_LOG, log], check=True, capture_output=True, env=one_core())
    curve: list[float] = json.loads(read.stdout)
    return curve


def main() -> None:
    """Train, and print a table for each set."""
    options = parser(__doc__ or "")
    learning_options(options, epochs=20, seeds=1)
    arguments = options.parse_args()
    curves = Curves(arguments.keep)
    peer: Sequence[str] = arguments.kraken or ()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title in at_hand(arguments.sets or SETS, arguments.data):
            training, validation = compiled(title, arguments.data, folder, program=peer or OURS)
            for seed in range(1, arguments.seeds + 1):
                top = f"--workers 0 --threads 1 --seed {seed} train -f binary -B 4 -r 1e-3 -q fixed"
                words = [*shlex.split(top), "-N", arguments.epochs, *start(arguments)]
                words += ["-t", training, "-e", validation]
                if peer:
                    curves.take(f"{title}/kraken/{seed}", partial(peer_curve, peer, words), folder)
                curves.take(f"{title}/ours/{seed}", partial(learn, words), folder)
            curves.show(title)


if __name__ == "__main__":
    main()
