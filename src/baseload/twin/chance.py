"""Draws that several parts of the twin share."""

import math

from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S, NS_PER_US


def exponential_ns(rng: Rng, mean_s: float) -> int:
    """A time between two independent occasions, at least a microsecond."""
    return max(NS_PER_US, round(-math.log(1.0 - rng.unit()) * mean_s * NS_PER_S))
