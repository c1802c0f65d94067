"""The autoscaler's decision, case by case."""

from typing import Any

import pytest

from baseload.domain.model import Scaling
from baseload.domain.units import NS_PER_S
from baseload.policy.scaling import (
    MOST_WORK,
    Choice,
    ScalingView,
    desired_replicas,
    has_slack,
    is_pressed,
    knows_capacity,
    replicas_needed,
    work_of,
)

FOUR = Scaling(min_replicas=0, max_replicas=4, idle_ns=60 * NS_PER_S)


def choose(scaling: Scaling = FOUR, **seen: Any) -> Choice:
    calm = {
        "wanted": 1,
        "ready": 1,
        "queued": 0,
        "oldest_wait_ns": 0,
        "in_flight": 1,
        "capacity": 8,
        "idle_for_ns": 0,
        "pressed_for_ns": 0,
        "slack_for_ns": 0,
        "since_scale_up_ns": 1 << 62,
    }
    return desired_replicas(ScalingView(**(calm | seen)), scaling)


def test_nothing_changes_without_a_reason() -> None:
    assert choose() == Choice(1)


@pytest.mark.parametrize(
    ("queued", "desired"), [(1, 1), (8, 1), (9, 2), (1_000, 4)], ids=["first", "full", "two", "no more than allowed"]
)
def test_wakes_from_zero_at_once(queued: int, desired: int) -> None:
    choice = choose(wanted=0, ready=0, in_flight=0, queued=queued, since_scale_up_ns=0)
    assert (choice.desired, choice.what) == (desired, "wake")
    assert ("a request waits" if queued == 1 else f"{queued} requests wait") in choice.why


def test_stays_asleep_without_a_request() -> None:
    assert choose(wanted=0, ready=0, in_flight=0).desired == 0


def test_sleeps_only_when_idle_long_enough() -> None:
    assert choose(in_flight=0, idle_for_ns=59 * NS_PER_S).desired == 1
    assert choose(in_flight=0, idle_for_ns=60 * NS_PER_S).what == "sleep"
    assert choose(in_flight=0, idle_for_ns=60 * NS_PER_S).desired == 0


def test_minimum_and_maximum() -> None:
    scaling = Scaling(min_replicas=2, max_replicas=3, idle_ns=NS_PER_S)
    assert choose(scaling, wanted=0, in_flight=0).desired == 2
    assert choose(scaling, wanted=5).desired == 3
    assert choose(scaling, wanted=3, in_flight=0, idle_for_ns=NS_PER_S).desired == 2
    assert choose(scaling, wanted=2, in_flight=0, idle_for_ns=NS_PER_S).desired == 2
    assert choose(Scaling(min_replicas=2, max_replicas=1), wanted=2).desired == 2


def test_grows_on_queueing_delay_not_on_load_alone() -> None:
    busy = {"queued": 3, "in_flight": 8}
    assert choose(**busy, oldest_wait_ns=NS_PER_S // 2).desired == 1
    assert choose(**busy, oldest_wait_ns=NS_PER_S // 2 + 1).what == "scale_up"
    assert choose(**busy, oldest_wait_ns=NS_PER_S).desired == 2
    assert choose(in_flight=8).desired == 1


def test_grows_on_a_long_queue_by_what_is_needed_at_most_doubling() -> None:
    assert choose(queued=9, in_flight=8).desired == 2
    assert choose(wanted=2, ready=2, queued=100, in_flight=16).desired == 4
    assert choose(wanted=2, ready=2, queued=17, in_flight=4).desired == 3


def test_waits_for_those_on_their_way_and_for_the_cooldown() -> None:
    late = {"oldest_wait_ns": 10 * NS_PER_S, "in_flight": 8}
    assert choose(wanted=2, ready=1, queued=8, **late).desired == 2
    assert choose(wanted=2, ready=1, queued=9, **late).desired == 3
    assert choose(queued=3, since_scale_up_ns=9 * NS_PER_S, **late).desired == 1


def test_grows_when_memory_has_been_short_for_a_while() -> None:
    assert choose(pressed_for_ns=2 * NS_PER_S).desired == 1
    assert choose(pressed_for_ns=3 * NS_PER_S).what == "scale_up"
    assert choose(wanted=2, ready=1, pressed_for_ns=9 * NS_PER_S).desired == 2


def test_gives_one_back_after_long_slack() -> None:
    assert choose(wanted=3, ready=3, slack_for_ns=59 * NS_PER_S).desired == 3
    choice = choose(wanted=3, ready=3, slack_for_ns=60 * NS_PER_S)
    assert (choice.desired, choice.what) == (2, "scale_down")
    assert choose(wanted=1, slack_for_ns=1 << 60).desired == 1, "the last one goes only by sleep"


def test_pressure_and_slack() -> None:
    assert is_pressed(kv_usage=0.9, target_kv_usage=0.85, all_have_waiting=False)
    assert is_pressed(kv_usage=0.0, target_kv_usage=0.85, all_have_waiting=True)
    assert not is_pressed(kv_usage=0.85, target_kv_usage=0.85, all_have_waiting=False)
    easy = {"replicas": 3, "capacity": 8, "target_kv_usage": 0.9}
    assert has_slack(load=8, kv_usage=0.4, **easy)
    assert not has_slack(load=9, kv_usage=0.4, **easy)
    assert not has_slack(load=8, kv_usage=0.45, **easy)
    assert not has_slack(load=0, kv_usage=0.0, **(easy | {"replicas": 1}))


RATED = Scaling(
    min_replicas=1, max_replicas=6, idle_ns=60 * NS_PER_S, requests_per_s=2.0, scale_down_ns=30 * NS_PER_S
)


def test_where_capacity_is_known_replicas_follow_the_rate_at_once_and_within_bounds() -> None:
    choice = choose(RATED, wanted=2, ready=2, in_flight=9, needed=4, most_needed=4, since_scale_up_ns=0)
    assert (choice.desired, choice.what) == (4, "scale_up")
    assert "need 4 replicas at 2/s" in choice.why
    assert choose(RATED, wanted=2, ready=2, needed=9, most_needed=9).desired == 6


def test_and_go_only_when_fewer_were_enough_for_a_while() -> None:
    assert choose(RATED, wanted=4, ready=4, needed=2, most_needed=4) == Choice(4)
    choice = choose(RATED, wanted=4, ready=4, needed=2, most_needed=3)
    assert (choice.desired, choice.what) == (3, "scale_down")
    assert choose(RATED, wanted=2, ready=2, needed=0, most_needed=0).desired == 1


def test_a_queue_starts_more_than_the_rate_asks_for_and_keeps_them() -> None:
    waits = {"queued": 3, "oldest_wait_ns": 2 * NS_PER_S}
    assert choose(RATED, wanted=2, ready=2, needed=2, most_needed=2, **waits).what == "scale_up"
    pressed = choose(RATED, wanted=4, ready=4, needed=2, most_needed=2, **waits, since_scale_up_ns=0)
    assert pressed == Choice(4)


def test_the_rate_is_that_of_a_minute_or_nearly_that_of_the_last_seconds() -> None:
    calm = {"over_ns": 60 * NS_PER_S, "quick_ns": 10 * NS_PER_S}
    assert replicas_needed(work=120, quick_work=20, **calm) == 2
    assert replicas_needed(work=120, quick_work=60, **calm) == 6  # a burst of 6, 0.85 of it
    assert replicas_needed(work=0, quick_work=0, **calm) == 0
    assert replicas_needed(work=9, over_ns=0, quick_work=9, quick_ns=0) == 2


def test_work_is_in_tokens_where_their_capacities_are_known_else_in_requests() -> None:
    asked = {"requests": 10, "prompt_tokens": 20_000, "answer_tokens": 100.0}
    assert work_of(**asked, scaling=Scaling()) == 0.0
    assert work_of(**asked, scaling=Scaling(requests_per_s=2.0)) == 5.0
    assert work_of(**asked, scaling=Scaling(requests_per_s=2.0, prompt_tokens_per_s=4000.0)) == 5.0
    both = Scaling(prompt_tokens_per_s=4000.0, output_tokens_per_s=500.0)
    assert work_of(**asked, scaling=both) == 7.0
    assert knows_capacity(both)
    assert knows_capacity(Scaling(requests_per_s=1.0))
    assert not knows_capacity(Scaling())


def test_the_reason_names_what_a_replica_carries() -> None:
    tokens = Scaling(min_replicas=1, max_replicas=8, prompt_tokens_per_s=3600.0)
    assert "3,600 prompt tokens/s" in choose(tokens, needed=3).why
    assert "2.5/s each" in choose(Scaling(min_replicas=1, max_replicas=8, requests_per_s=2.5), needed=3).why


@pytest.mark.parametrize("carries", [5e-324, 2.2250738585072014e-308, 1e-300])
def test_a_replica_that_carries_next_to_nothing_still_gives_numbers(carries: float) -> None:
    of_requests = Scaling(requests_per_s=carries)
    of_tokens = Scaling(prompt_tokens_per_s=carries, output_tokens_per_s=carries)
    for scaling in (of_requests, of_tokens):
        work = work_of(requests=6, prompt_tokens=120, answer_tokens=5.0, scaling=scaling)
        assert work == MOST_WORK
        assert replicas_needed(work=6 * work, over_ns=NS_PER_S, quick_work=work, quick_ns=0) > 10**10
