"""A step in one padded batch against the micro-batches it is cut in: processor time, forward and backward.

    python benchmarks/micro_batches.py [--data FOLDER] [--steps N] [--repeat N]

Steps of 16 lines of print16-alto (else drawn ones) in the order of an epoch, one thread: the default network
at height 120 under bfloat16 autocast, and a small one at height 48 in float32. Cutting off is `good_share` 0.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, parser
from delivery import sources
from order import columns, efficiency, ours
from training import SMALL

BATCH = 16
LABELS = 80


def trained_seconds(network: Any, widths: Any, micro_batches: Any, *, bfloat16: bool) -> float:
    """Processor seconds of the gradient of a step."""
    import torch

    height = network.input_shape[2]
    began = time.process_time()
    network.zero_grad()
    for part in micro_batches:
        own = torch.from_numpy(widths[part].astype(np.int64))
        images = torch.rand((len(part), 1, height, int(own.max())))
        with torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext():
            scores, steps = network(images, own)
        lengths = torch.full((len(part),), 30)
        losses = torch.nn.functional.ctc_loss(
            scores.squeeze(2).float().log_softmax(1).permute(2, 0, 1),
            torch.ones(int(lengths.sum()), dtype=torch.int64),
            steps,
            lengths,
            reduction="none",
            zero_infinity=True,
        )
        (losses.sum() / BATCH).backward()
    return time.process_time() - began


def main() -> None:
    """Print a row for each network."""
    options = parser(__doc__ or "")
    options.add_argument("--steps", type=int, default=3, help="steps to time of an epoch")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from distrib.config.choices import DEFAULT_SPEC
    from distrib.model.vgsl import VGSLNetwork, recognition_spec
    from distrib.stream.micro_batches import split_step

    torch.set_num_threads(1)
    print(f"\n{'network':16} {'micro-batches':>13} {'fill':>12} {'lines/s':>12} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        form, files = sources(arguments.data, Path(folder))["baselines"]
        for name, spec, height in (("default, bf16", DEFAULT_SPEC, 120), ("small, float32", SMALL, 48)):
            network = VGSLNetwork(recognition_spec(spec, LABELS))
            network.init_weights()
            widths = columns(files, form, "baselines", height)
            epoch = ours(widths, BATCH, 0)
            steps = epoch[: arguments.steps]
            cuts = {
                share: [
                    split_step(
                        widths[step],
                        world_size=1,
                        max_lines=BATCH,
                        max_pixels=0,
                        height=height,
                        good_share=share,
                    )[0]
                    for step in steps
                ]
                for share in (0.0, 0.95)
            }
            best = {share: np.full(len(steps), np.inf) for share in cuts}
            for _ in range(arguments.repeat):
                for number, step in enumerate(steps):
                    for share, cut in cuts.items():
                        seconds = trained_seconds(network, widths[step], cut[number], bfloat16="bf16" in name)
                        best[share][number] = min(best[share][number], seconds)
            lines = sum(step.size for step in steps)
            rates = {share: lines / float(found.sum()) for share, found in best.items()}
            parts = np.mean([len(cut) for cut in cuts[0.95]])
            real = sum(int(widths[step].sum()) for step in steps)
            padded = sum(int(widths[step].max()) * step.size for step in steps)
            fill, _, _ = efficiency(widths, steps, 1, BATCH)
            print(
                f"{name:16} {f'1, {parts:.1f}':>13} {f'{real / padded:.3f}, {fill:.3f}':>12} "
                f"{f'{rates[0.0]:.2f}, {rates[0.95]:.2f}':>12} {rates[0.95] / rates[0.0]:6.2f}"
            )


if __name__ == "__main__":
    main()
