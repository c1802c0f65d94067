"""Time of collective operations on a hierarchical fabric: links get slower from level to level outwards.

A `Fabric` is a list of `Level`s, the innermost first: how many accelerators it joins, what one accelerator sends a
second in one direction, and how long one message takes to set off. A `Group` says how many members an operation has
at each level, so a group of 32 in four nodes of eight is (8, 4). Hierarchical algorithms work level by level: what
crosses an outer level is first cut by the members inside.

    ring, per level    (n − 1) latencies,  bytes · (n − 1)/n / rate
    tree, per level    2 · log2(n) latencies,  2 · bytes / rate  (all-reduce of small messages)

Sizes are bytes per member; times are seconds at the sheet's rates. What real libraries reach of them is calibration's
business. Costs follow Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH".
"""

from math import ceil, log2, prod

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.catalogue.accelerators import Fabric as Latencies

NODE = 8  # accelerators on one host bus
SHARED_GB_PER_S = 64.0  # of PCIe Gen5 x16, one way: what a card without fast links sends; source: PCI-SIG, 5.0


class Level(Struct, frozen=True):
    """Links of one level. `size` accelerators are joined by it (inner levels included); 0: any number."""

    name: str
    size: int
    gb_per_s: float  # out of one accelerator, one direction
    latency_s: float

    @property
    def bytes_per_s(self) -> float:
        """The rate out of one accelerator; DataError where it is blank."""
        if self.gb_per_s <= 0:
            raise DataError(
                f"The rate of the {self.name} links is blank, and work crosses them.",
                hint="Give scale_out_gbit_per_s of the accelerator in your own catalogue TOML (docs/catalogue.md).",
            )
        return self.gb_per_s * 1e9


class Fabric(Struct, frozen=True):
    """Levels from the innermost outwards; the last has no bound."""

    levels: tuple[Level, ...]

    def place(self, size: int, *, stride: int = 1) -> "Group":
        """A group of `size` whose members lie `stride` accelerators apart: how many of them each level joins."""
        left, counts, inner = size, [], stride
        for level in self.levels[:-1]:
            room = max(1, level.size // inner) if level.size > 0 else left
            here = _greatest_divisor(left, room)
            counts.append(here)
            left //= here
            inner = max(inner * here, level.size)
        counts.append(left)
        return Group(tuple(counts))

    def wires(self) -> "Fabric":
        """The same links without their latencies, to count bytes and messages apart."""
        return Fabric(tuple(Level(level.name, level.size, level.gb_per_s, 0.0) for level in self.levels))


class Group(Struct, frozen=True):
    """Members at each level of a fabric, innermost first."""

    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """All members."""
        return prod(self.counts)


def fabric_of(accelerator: Accelerator, latencies: Latencies, *, domain: int | None = None) -> Fabric:
    """The fabric of an accelerator's sheet: its scale-up domain, then its share of the network outside.

    Cards that bridges join in twos or fours reach the others of their node over its bus. A chip without scale-up
    links uses PCIe inside its node. MissingFigure names what is blank where a network is needed: give
    `scale_out_gbit_per_s`.
    """
    size = domain or accelerator.scale_up_domain or 8
    inside = accelerator.scale_up_gb_per_s or SHARED_GB_PER_S
    outside = accelerator.scale_out_gbit_per_s
    levels = [Level("scale-up", size, inside, latencies.latency_us_inside * 1e-6)]
    if accelerator.host_bus_gb_per_s is not None and size < NODE:
        levels.append(Level("host bus", NODE, accelerator.host_bus_gb_per_s, latencies.latency_us_inside * 1e-6))
    rate = outside / 8.0 if outside is not None else 0.0
    levels.append(Level("scale-out", 0, rate, latencies.latency_us_outside * 1e-6))
    return Fabric(tuple(levels))


def all_gather(fabric: Fabric, group: Group, gathered_bytes: float) -> float:
    """Every member ends with `gathered_bytes`, of which each held an equal part."""
    seconds, inner = 0.0, 1
    for level, n in zip(fabric.levels, group.counts, strict=True):
        if n > 1:
            through = gathered_bytes / inner * (n - 1) / n
            seconds += through / level.bytes_per_s + (n - 1) * level.latency_s * _ring_share(n)
        inner *= n
    return seconds


def all_reduce(fabric: Fabric, group: Group, reduced_bytes: float) -> float:
    """Every member ends with the sum of `reduced_bytes`: the faster of rings and trees."""
    if group.size <= 1:
        return 0.0
    rings = 2.0 * all_gather(fabric, group, reduced_bytes)
    trees = 0.0
    for level, n in zip(fabric.levels, group.counts, strict=True):
        if n > 1:
            trees += 2.0 * ceil(log2(n)) * level.latency_s + 2.0 * reduced_bytes / level.bytes_per_s
    return min(rings, trees)


def all_to_all(fabric: Fabric, group: Group, sent_bytes: float) -> float:
    """Every member sends `sent_bytes`, an equal part to each member (its own stays). Levels work side by side."""
    seconds, reached, latency = 0.0, 1, 0.0
    for level, n in zip(fabric.levels, group.counts, strict=True):
        if n > 1:
            beyond = reached * n - reached  # members first reached at this level
            seconds = max(seconds, sent_bytes * beyond / group.size / level.bytes_per_s)
            latency = max(latency, level.latency_s * (1.0 + log2(n)))
        reached *= n
    return seconds + latency


def send(fabric: Fabric, sent_bytes: float, *, level: int) -> float:
    """One member to another, across a level (0: the innermost)."""
    link = fabric.levels[min(level, len(fabric.levels) - 1)]
    return sent_bytes / link.bytes_per_s + link.latency_s


def _ring_share(n: int) -> float:
    """Latency of a ring's steps that is seen: several messages are in flight, so it grows slower than n."""
    return min(1.0, (1.0 + log2(n)) / n)


def _greatest_divisor(number: int, most: int) -> int:
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
