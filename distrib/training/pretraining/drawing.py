"""Random numbers by counting, on the device where they are wanted: the same on every device.

The numbers are SplitMix64's (Steele, Lea and Flood 2014): the stream of a key is a hash of its counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def draw_below(keys: Tensor, count: int, below: Tensor) -> Tensor:
    """``count`` integers in 0..below - 1 for each key, int64 (N, count), on the device of ``keys``.

    ``keys`` int64 (N,); ``below`` int64 (N,) under 2**31, where it is 0 the integers are 0.
    """
    counter = torch.arange(1, count + 1, device=keys.device)
    mixed = keys[:, None] + counter * _signed(_STEP)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(_FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_SECOND)
    # Its last step, `x ^ x >> 31`, leaves the upper bits as they are, and 31 of these are enough.
    return (_shifted(mixed, 33) * below[:, None]) >> 31


def _shifted(values: Tensor, bits: int) -> Tensor:
    """The 64 bits of each value shifted to the right, zeros following."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
