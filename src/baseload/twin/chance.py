"""Draws that several parts of the twin share."""

import math

from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S, NS_PER_US

NEVER_NS = 1 << 100  # longer than any run: of what is so rare that its time is no finite number


def exponential_ns(rng: Rng, mean_s: float) -> int:
    """A time between two independent occasions, at least a microsecond and at most `NEVER_NS`."""
    return max(NS_PER_US, round(min(-math.log(1.0 - rng.unit()) * mean_s * NS_PER_S, NEVER_NS)))
