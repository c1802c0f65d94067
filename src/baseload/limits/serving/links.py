"""What links give a group of accelerators: bytes a second out of each of them, and how late a collective begins.

A switch gives the whole rate to any group. In a mesh an accelerator has a link to each other one of its domain, and
a group uses those to its own members: two of eight MI300X one of seven. A torus has two links a dimension: a slice of
2 by 2 chips uses half of four, and a ring around it takes a step for each chip it passes.
"""

from math import log2

from baseload.limits.catalogue.accelerators import Accelerator

FAST_GB_PER_S = 200.0  # a link of accelerators among themselves, one way; host buses are below
_TORUS = {"torus2": 2, "torus3": 3}


def lateness(chip: Accelerator, gpus: int) -> float:
    """Of a collective over so many, in those of two on a fast switch; slow links are host buses and late to begin."""
    rate = _rate(chip, gpus, whole=True)
    slow = max(1.0, FAST_GB_PER_S / rate) if rate else 1.0
    dimensions = _TORUS.get(chip.scale_up_topology)
    steps = (1.0 + log2(gpus)) / 2.0
    if dimensions:
        steps = max(steps, _hops(gpus, dimensions) / 2.0)
    return slow * steps


def inside(chip: Accelerator, gpus: int) -> tuple[int, float]:
    """How many of the accelerators share fast links, and bytes per second out of one of them."""
    if chip.scale_up_gb_per_s:
        domain = max(1, chip.scale_up_domain or 1)
        group = min(gpus, domain) if gpus <= domain or chip.scale_out_gbit_per_s else gpus
        return group, _rate(chip, group, whole=False) * 1e9
    if gpus > 1 and not chip.scale_out_gbit_per_s:
        return gpus, chip.need("scale_up_gb_per_s") * 1e9
    return 1, 0.0


def _rate(chip: Accelerator, gpus: int, *, whole: bool) -> float:
    """Decimal GB a second out of one of so many (0: none known); `whole`: of the links themselves, however many."""
    if not chip.scale_up_gb_per_s:
        return 0.0
    domain = max(1, chip.scale_up_domain or 1)
    if gpus > domain and chip.host_bus_gb_per_s and not chip.scale_out_gbit_per_s:
        return chip.host_bus_gb_per_s
    if whole or gpus <= 1:
        return chip.scale_up_gb_per_s
    if chip.scale_up_topology == "mesh":
        return chip.scale_up_gb_per_s * min(1.0, (gpus - 1) / max(1, domain - 1))
    dimensions = _TORUS.get(chip.scale_up_topology)
    return chip.scale_up_gb_per_s * (min(1.0, log2(gpus) / (2.0 * dimensions)) if dimensions else 1.0)


def _hops(gpus: int, dimensions: int) -> float:
    """Steps of an all-reduce over a slice as square as it goes: twice the way along each side."""
    sides = log2(gpus)
    whole, rest = divmod(sides, dimensions)
    long, short = 2.0 ** (whole + 1), 2.0**whole
    return float(2.0 * (rest * (long - 1.0) + (dimensions - rest) * (short - 1.0)))
