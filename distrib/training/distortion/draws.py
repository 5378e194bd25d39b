"""Random numbers that belong to a line in an epoch, whatever else is in its batch."""

from __future__ import annotations

from copy import copy
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

_Integers = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


class Draws:
    """Random numbers of N lines, a function of (seed, epoch, line, what is drawn, its number) alone.

    They are hashes of a counter (the mixer of SplitMix64: Steele, Lea and Flood 2014), all lines at once.
    What is drawn has a name, so that a new draw leaves the others as they were.
    """

    def __init__(self, seed: int, epoch: int, lines: npt.NDArray[np.int64]) -> None:
        whole = np.array([seed % 2**64], dtype=np.uint64)
        of_epoch = _mixed(_mixed(whole) + np.uint64(epoch % 2**64))
        self._keys = _mixed(of_epoch + lines.astype(np.int64).view(np.uint64))

    def select(self, chosen: npt.NDArray[np.int64]) -> Draws:
        """Those of some of the lines."""
        some = copy(self)
        some._keys = self._keys[chosen]
        return some

    def bits(self, what: str, count: int) -> _Integers:
        """64 random bits each, (N, count); the first of them do not depend on ``count``."""
        name = np.frombuffer(blake2b(what.encode(), digest_size=8).digest(), dtype="<u8")
        keys = _mixed(self._keys ^ name)
        return _mixed(keys[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))

    def uniform(self, what: str, low: float = 0.0, high: float = 1.0) -> Floats:
        """Numbers (N,) from [low, high)."""
        return self.uniforms(what, 1, low, high)[:, 0]

    def uniforms(self, what: str, count: int, low: float = 0.0, high: float = 1.0) -> Floats:
        """Numbers (N, count) from [low, high)."""
        numbers = (self.bits(what, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * numbers

    def happens(self, what: str, probability: float) -> npt.NDArray[np.bool_]:
        """Bool (N,): true with this probability."""
        return self.uniform(f"whether {what}") < probability


def _mixed(values: _Integers) -> _Integers:
    """A bijection of 64 bits whose every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
