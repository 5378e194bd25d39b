"""Lines a processor second of kraken's data set class; run by `delivery.py` with kraken's interpreter.

python kraken_delivery.py DATASET.arrow bbox|baselines HEIGHT SECONDS
"""

from __future__ import annotations

import sys
import time

from kraken.lib.dataset import ArrowIPCRecognitionDataset, ImageInputTransforms


def main() -> None:
    """Read lines in order, over and over, for some seconds; print lines a second of processor time."""
    path, line_type, height, seconds = sys.argv[1:]
    # The centre line is normalised (valid_norm) for boxes, as kraken's training does.
    transforms = ImageInputTransforms(1, int(height), 0, 1, (16, 0), valid_norm=line_type == "bbox")
    dataset = ArrowIPCRecognitionDataset(im_transforms=transforms)
    dataset.add(path)
    dataset.encode(None)
    # Its items hide lines that fail; the first one is decoded here so that a failure is seen.
    dataset[0]
    lines, started = 0, time.process_time()
    while time.process_time() - started < float(seconds):
        dataset[lines % len(dataset)]
        lines += 1
    print(lines / (time.process_time() - started))


if __name__ == "__main__":
    main()
