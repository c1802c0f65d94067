"""Two random choices, and affinity to who knows the prompt."""

from collections import Counter

import pytest

from baseload.domain.fleet import ReplicaView
from baseload.domain.rng import Rng
from baseload.policy.routing import choose_replica, draw_two


def view(name: str, in_flight: int, *, capacity: int = 16, kv: float = 0.0, hits: int = 0) -> ReplicaView:
    return ReplicaView(name, in_flight, capacity, kv, hits)


def test_every_pair_is_drawn_about_equally_often() -> None:
    rng = Rng(3)
    drawn = Counter(draw_two(4, rng) for _ in range(12_000))
    assert len(drawn) == 12
    assert all(first != second for first, second in drawn)
    assert all(850 < count < 1_150 for count in drawn.values())


@pytest.mark.parametrize(
    ("views", "chosen"),
    [
        ([view("a", 3), view("b", 2)], 1),
        ([view("a", 2), view("b", 2)], 0),  # a tie goes to the first
        ([view("a", 2, kv=0.5), view("b", 2, kv=0.1)], 1),  # at equal load, the emptier cache
        ([view("a", 3, capacity=64), view("b", 2, capacity=8)], 0),  # load is relative to capacity
        ([view("a", 0), view("b", 4, hits=2)], 1),  # the known prefix is worth a little queue
        ([view("a", 0), view("b", 5, hits=2)], 0),  # but not more than a little
        ([view("a", 0), view("b", 1, hits=2, kv=0.96)], 0),  # a full cache will have evicted it
        ([view("a", 1, hits=1), view("b", 1, hits=3)], 1),  # the longer prefix wins
    ],
)
def test_choice(views: list[ReplicaView], chosen: int) -> None:
    assert choose_replica(views) == chosen
