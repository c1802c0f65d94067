"""Where a gang goes, and who makes room for it: pure choices over counts.

Topology first: a gang under one switch exchanges gradients without the spine; so the switch with the least room that
suffices (best fit keeps large holes for large gangs), else the pod with the least room that suffices, else the fewest
switches of the site. Victims are whole gangs, never parts, and those whose stop loses the least work.
"""

from collections.abc import Sequence

from msgspec import Struct


def choose_switches(free: Sequence[int], needed: int, *, switches_per_pod: int) -> list[tuple[int, int]]:
    """(switch, nodes) for a gang of `needed` whole nodes, given the free ones per switch; [] where too few are.

    `free` is a site's switches in order, pods being runs of `switches_per_pod`; ties go to the first.
    """
    best, least = -1, 1 << 60
    total = 0
    for switch, count in enumerate(free):
        total += count
        if needed <= count < least:
            best, least = switch, count
    if best >= 0:
        return [(best, needed)]
    if total < needed:
        return []
    pods = [sum(free[start : start + switches_per_pod]) for start in range(0, len(free), switches_per_pod)]
    fitting = [pod for pod, count in enumerate(pods) if count >= needed]
    if fitting:
        pod = min(fitting, key=lambda at: (pods[at], at))
        among = range(pod * switches_per_pod, min(len(free), (pod + 1) * switches_per_pod))
    else:
        among = range(len(free))
    chosen = []
    for switch in sorted(among, key=lambda at: (-free[at], at)):
        count = min(needed, free[switch])
        if count:
            chosen.append((switch, count))
            needed -= count
        if not needed:
            break
    return chosen


class Victim(Struct, frozen=True):
    """A running gang that may be stopped."""

    job_id: str
    nodes: int  # whole nodes its stop frees
    lost_ns: int  # accelerator-nanoseconds since its last checkpoint, and what its restart costs
    priority: int


def choose_victims(candidates: Sequence[Victim], needed: int) -> list[Victim]:
    """Whole gangs whose stop frees at least `needed` nodes, losing little work; [] where all together do not suffice.

    Lowest priority first, within one the least lost work per node; then whoever turns out not to be needed is spared,
    dearest first. Exact choice is a knapsack; this is within one gang of it and O(n log n).
    """
    chosen: list[Victim] = []
    freed = 0
    for victim in sorted(candidates, key=lambda v: (v.priority, v.lost_ns / max(1, v.nodes), v.job_id)):
        if freed >= needed:
            break
        if victim.nodes > 0:
            chosen.append(victim)
            freed += victim.nodes
    if freed < needed:
        return []
    for victim in sorted(chosen, key=lambda v: (-v.priority, -v.lost_ns, v.job_id)):
        if freed - victim.nodes >= needed:
            chosen.remove(victim)
            freed -= victim.nodes
    return chosen


def may_pass(*, waited_ns: int, patience_ns: int) -> bool:
    """Whether later jobs may take places that an earlier one, too large for them, waits for. Not for ever."""
    return waited_ns < patience_ns
