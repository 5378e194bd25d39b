"""What augmentation adds to a training step: lines a second of gradients with it and without.

    python benchmarks/augmentation.py [--data FOLDER] [--steps N] [--threads N] [--repeat N] [--device DEVICE]

Steps of 16 lines of fraktur-lines (else drawn ones) in the order of an epoch: the default network at height
120 under bfloat16 autocast, and a small one at height 48 in float32. On the CPU seconds are those of the
processor, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, parser
from order import ours
from training import SMALL, line_images

BATCH = 16
LABELS = 80


def batches(paths: list[Path], height: int, steps: int) -> list[tuple[Any, Any, Any]]:
    """Images (N, 1, H, W) in 0..1, widths and line numbers of the first steps of an epoch."""
    import torch
    from PIL import Image

    from distrib.ground_truth.network_input import NetworkInput

    convert = NetworkInput(height=height)
    lines = [convert(Image.open(path)) for path in paths]
    widths = np.array([line.shape[2] for line in lines], dtype=np.int32)
    result = []
    for step in ours(widths, BATCH, 0)[:steps]:
        images = torch.zeros((step.size, 1, height, int(widths[step].max())), dtype=torch.uint8)
        for slot, line in zip(images, step, strict=True):
            slot[:, :, : widths[line]] = torch.from_numpy(lines[line])
        result.append((images / 255, torch.from_numpy(widths[step].astype(np.int64)), torch.from_numpy(step)))
    return result


def gradient(network: Any, images: Any, widths: Any, *, bfloat16: bool) -> None:
    """Forward and backward pass of a batch."""
    import torch

    network.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16) if bfloat16 else nullcontext():
        scores, steps = network(images, widths)
    lengths = torch.full((len(widths),), 10)
    labels = torch.ones(int(lengths.sum()), dtype=torch.int64, device=images.device)
    log_probabilities = scores.squeeze(2).float().log_softmax(1).permute(2, 0, 1)
    torch.nn.functional.ctc_loss(log_probabilities, labels, steps, lengths, zero_infinity=True).backward()


def best_seconds(work: Callable[[], Any], device: str, repeat: int) -> float:
    """Seconds of the best of ``repeat`` runs: of the processor, or else until the device is done."""
    import torch

    found = []
    for _ in range(repeat):
        if device == "cpu":
            began = time.process_time()
            work()
            found.append(time.process_time() - began)
        else:
            torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Print a row for each network."""
    options = parser(__doc__ or "")
    options.add_argument("--steps", type=int, default=3, help="steps to time of an epoch")
    options.add_argument("--threads", type=int, default=1, help="threads to compute with")
    options.add_argument("--strength", type=float, default=1.0, help="strength of augmentation")
    options.add_argument("--device", default="cpu", help="where to compute")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch

    from distrib.config.choices import DEFAULT_SPEC
    from distrib.model.vgsl import VGSLNetwork, recognition_spec
    from distrib.training.augmentation import Augmentation

    torch.set_num_threads(arguments.threads)
    augment = Augmentation(arguments.strength)
    print(f"\n{'network':16} {'lines/s':>9} {'augmented':>10} {'ms a line':>10} {'of a step':>10}")
    with tempfile.TemporaryDirectory() as folder:
        paths = line_images(arguments.data, Path(folder))
        for name, spec, height in (("default, bf16", DEFAULT_SPEC, 120), ("small, float32", SMALL, 48)):
            network = VGSLNetwork(recognition_spec(spec, LABELS))
            network.init_weights()
            network.to(arguments.device).train()
            plain, added, lines = 0.0, 0.0, 0
            for images, widths, numbers in batches(paths, height, arguments.steps):
                images = images.to(arguments.device)
                step = partial(gradient, network, images, widths, bfloat16="bf16" in name)
                more = partial(augment, images, widths, numbers, seed=0, epoch=0)
                plain += best_seconds(step, arguments.device, arguments.repeat)
                added += best_seconds(more, arguments.device, arguments.repeat)
                lines += len(numbers)
            print(
                f"{name:16} {lines / plain:9.1f} {lines / (plain + added):10.1f} "
                f"{1000 * added / lines:10.2f} {added / plain:10.1%}"
            )


if __name__ == "__main__":
    main()
