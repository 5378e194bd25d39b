"""The automatic split into training and validation lines: a property of each line, not of the data set.

A line's side follows from its key and the seed alone, so it stays the same when lines are added, when the
order of files changes, on another machine, and in every process of a job.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SPLITMIX_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_SPLITMIX_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def training_mask(keys: npt.NDArray[np.uint64], *, ratio: float, seed: int) -> npt.NDArray[np.bool_]:
    """True (N,) for lines to train on, False for validation; ``keys`` (N,) are the lines' stable keys.

    Lines with equal keys are on the same side (pages stay together where the keys are the pages'). The
    share of keys trained on is ``ratio`` in expectation. Where both sides can hold something, both do:
    with chance leaving one empty, the key nearest the boundary changes sides.
    """
    position = mix(keys, seed).astype(np.float64) / 2.0**64
    mask = position < ratio
    if ratio < 1.0 and np.unique(keys).size > 1:
        if mask.all():
            mask = position < position.max()
        elif not mask.any():
            mask = position <= position.min()
    return mask


def mix(keys: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser over ``keys`` (N,) offset by ``seed``: uniform 64-bit values (Steele 2014)."""
    with np.errstate(over="ignore"):
        state = keys.astype(np.uint64) + np.uint64(seed + 1) * _SPLITMIX_INCREMENT
        state = (state ^ (state >> np.uint64(30))) * _SPLITMIX_MULTIPLIERS[0]
        state = (state ^ (state >> np.uint64(27))) * _SPLITMIX_MULTIPLIERS[1]
        mixed: npt.NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
