"""What pretraining gives where few lines are transcribed: a tenth of the labels, with and without it.

    python benchmarks/pretraining.py [--data FOLDER] [--pretrain-epochs N] [--epochs N] [--seeds N]
                                     [--sets NAME …] [--keep FILE.json]

Pretraining sees the images of all training lines, without texts. Then every tenth of them is trained on with
its text, from the pretrained weights and from scratch, with the same seeds and as many steps.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import OURS, parser
from curves import Curves, best_weights, learn, learning_options, run_ours
from real_sets import SETS, at_hand, compiled, tenth


def pretrained(before: Sequence[object], train: Sequence[object], run: Path) -> list[float]:
    """The curve of a training that starts from what the words ``before`` leave."""
    start = run.with_name(f"{run.name}-before")
    run_ours(before, start)
    return learn([*train, "-i", best_weights(start)], run)


def main() -> None:
    """Train, and print a table for each set."""
    options = parser(__doc__ or "")
    learning_options(options, epochs=60, seeds=3)
    options.add_argument("--pretrain-epochs", type=int, default=20, help="epochs of pretraining")
    arguments = options.parse_args()
    curves = Curves(arguments.keep)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title in at_hand(arguments.sets or list(SETS)[:2], arguments.data):
            training, validation = compiled(title, arguments.data, folder, program=OURS)
            labelled = tenth(title, arguments.data, folder, program=OURS)
            for seed in range(1, arguments.seeds + 1):
                top = f"--workers 0 --threads 1 --seed {seed}"
                fixed = f"-f binary -q fixed -s {shlex.quote(arguments.spec)}"
                pretrain = shlex.split(
                    f"{top} pretrain {fixed} -B 8 -N {arguments.pretrain_epochs} -r 1e-3 --warmup 400 "
                    f"--cos-max {arguments.pretrain_epochs}"
                )
                train = shlex.split(f"{top} train {fixed} -B 2 -N {arguments.epochs} -r 1e-3")
                train += ["-t", labelled, "-e", validation]
                before = [*pretrain, "-t", training, "-e", validation]
                curves.take(f"{title}/from scratch/{seed}", partial(learn, train), folder)
                curves.take(f"{title}/pretrained/{seed}", partial(pretrained, before, train), folder)
            curves.show(title)


if __name__ == "__main__":
    main()
