"""A small seeded generator whose state is one integer, so that it can be journaled and replayed.

SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Rng:
    """One named stream of a master seed: `Rng(seed, "router")`. `state` saves and restores it."""

    __slots__ = ("state",)

    def __init__(self, seed: int, stream: str = "") -> None:
        state = seed & _MASK
        for byte in stream.encode():
            state = _mix((state ^ byte) + _GOLDEN & _MASK)
        self.state = state

    def u64(self) -> int:
        """The next 64 random bits."""
        self.state = (self.state + _GOLDEN) & _MASK
        return _mix(self.state)

    def below(self, bound: int) -> int:
        """An integer in [0, bound); bound must be positive and well below 2**64."""
        assert bound > 0
        self.state = z = (self.state + _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK  # as `_mix`, which is a call
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return ((z ^ (z >> 31)) * bound) >> 64

    def unit(self) -> float:
        """A float in [0, 1) with 53 random bits."""
        return (self.u64() >> 11) * (1.0 / (1 << 53))


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
