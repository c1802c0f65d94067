"""Which replica serves a request: the less loaded of two drawn at random, unless one knows the prompt's beginning.

Two random choices keep the longest queue near the optimum at constant cost (Mitzenmacher, "The power of two choices
in randomized load balancing", 2001). A replica that lately served the same prefix has its KV blocks cached; it is
preferred while it is not notably busier.
"""

from collections.abc import Sequence

from baseload.domain.fleet import ReplicaView
from baseload.domain.rng import Rng

FULL_KV = 0.95  # above this, a cached prefix is likely to be evicted anyway


def draw_two(count: int, rng: Rng) -> tuple[int, int]:
    """Two different indices below `count` (at least 2), every pair equally likely."""
    first = rng.below(count)
    second = rng.below(count - 1)
    return first, second + (second >= first)


def choose_replica(candidates: Sequence[ReplicaView]) -> int:
    """The index of the replica to use; ties go to the earlier one. `candidates` must not be empty."""
    best, least = 0, candidates[0]
    for index in range(1, len(candidates)):
        view = candidates[index]
        mine, theirs = view.in_flight * least.capacity, least.in_flight * view.capacity
        if mine < theirs or (mine == theirs and view.kv_usage < least.kv_usage):
            best, least = index, view
    chosen, hits = best, 0
    for index, view in enumerate(candidates):
        if view.prefix_hits > hits and _may_take_more(view, least):
            chosen, hits = index, view.prefix_hits
    return chosen


def _may_take_more(view: ReplicaView, least: ReplicaView) -> bool:
    slack = 2 + view.capacity // 8
    return view.in_flight <= least.in_flight + slack and view.kv_usage < FULL_KV
