"""Least work ahead, few or drawn candidates, and affinity to who knows the prompt."""

from collections import Counter

import pytest

from baseload.domain.fleet import ReplicaView
from baseload.domain.rng import Rng
from baseload.policy.routing import choose_replica, draw


def view(name: str, in_flight: int, *, capacity: int = 16, kv: float = 0.0, hits: int = 0) -> ReplicaView:
    return ReplicaView(name, in_flight, capacity, kv, hits)


def test_a_few_are_all_looked_at_and_of_many_four_each_as_often_as_the_others() -> None:
    rng = Rng(3)
    assert draw(1, rng) == [0]
    assert draw(8, rng) == list(range(8))
    drawn = Counter(index for _ in range(9_000) for index in draw(12, rng))
    assert len(drawn) == 12
    assert all(2_800 < count < 3_200 for count in drawn.values())
    assert all(len({*draw(9, rng)}) == 4 for _ in range(500))


def test_prompts_still_to_be_computed_weigh_more_than_requests() -> None:
    busy = ReplicaView("a", 3, 16, 0.0, 0, held_tokens=600, waiting_tokens=0)
    computing = ReplicaView("b", 1, 16, 0.0, 0, held_tokens=4000, waiting_tokens=4000)
    assert choose_replica([computing, busy]) == 1
    assert choose_replica([busy, ReplicaView("c", 2, 16, 0.0, 0, held_tokens=500)]) == 1


@pytest.mark.parametrize(
    ("views", "chosen"),
    [
        ([view("a", 3), view("b", 2)], 1),
        ([view("a", 2), view("b", 2)], 0),  # a tie goes to the first
        ([view("a", 2, kv=0.5), view("b", 2, kv=0.1)], 1),  # at equal load, the emptier cache
        ([view("a", 3, capacity=64), view("b", 2, capacity=8)], 0),  # load is relative to capacity
        ([view("a", 0), view("b", 3, hits=2)], 1),  # the known prefix is worth a little queue
        ([view("a", 0), view("b", 4, hits=2)], 0),  # but not more than a little
        ([view("a", 0), view("b", 4, hits=3)], 1),  # a longer one is worth more
        ([view("a", 0), view("b", 5, hits=8)], 0),  # requests beside one another slow each other down
        ([view("a", 0), view("b", 1, hits=2, kv=0.96)], 0),  # a full cache will have evicted it
        ([view("a", 1, hits=1), view("b", 1, hits=3)], 1),  # the longer prefix wins
    ],
)
def test_choice(views: list[ReplicaView], chosen: int) -> None:
    assert choose_replica(views) == chosen


def test_a_known_prefix_does_not_draw_requests_behind_long_prompts() -> None:
    """Counted in requests, two more beside 24,000 tokens to compute were taken for a little more."""
    knows = ReplicaView("a", 3, 64, 0.2, 4, held_tokens=24_000, waiting_tokens=24_000)
    assert choose_replica([knows, ReplicaView("b", 2, 64, 0.2, 0, held_tokens=2_000)]) == 1
    little = ReplicaView("a", 3, 64, 0.2, 8, held_tokens=24_000, waiting_tokens=1_000)
    assert choose_replica([little, ReplicaView("b", 2, 64, 0.2, 0, held_tokens=2_000)]) == 0
