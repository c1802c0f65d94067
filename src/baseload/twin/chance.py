"""Draws that several parts of the twin share."""

import math
from collections.abc import Iterator

import numpy as np

from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S, NS_PER_US

NEVER_NS = 1 << 100  # longer than any run: of what is so rare that its time is no finite number
_GOLDEN, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_FEWEST, _MOST = 256, 8192  # made at once


def bits(rng: Rng) -> Iterator[int]:
    """What `rng.u64()` would give from here on, made many at a time: its state goes up by a constant (SplitMix64)."""
    state, count = rng.state, _FEWEST
    while True:
        z = np.uint64(state) + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        state = int(z[-1])
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        yield from (z ^ (z >> np.uint64(31))).tolist()
        count = min(2 * count, _MOST)


class Draws:
    """What `rng` would give from here on, sooner."""

    __slots__ = ("_u64",)

    def __init__(self, rng: Rng) -> None:
        self._u64 = bits(rng).__next__

    def below(self, bound: int) -> int:
        """An integer in [0, bound); see `Rng.below`."""
        return self._u64() * bound >> 64


def exponential_ns(rng: Rng, mean_s: float) -> int:
    """A time between two independent occasions, at least a microsecond and at most `NEVER_NS`."""
    return max(NS_PER_US, round(min(-math.log(1.0 - rng.unit()) * mean_s * NS_PER_S, NEVER_NS)))
