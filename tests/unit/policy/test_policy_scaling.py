"""The autoscaler's decision, case by case."""

from typing import Any

import pytest

from baseload.domain.model import Scaling
from baseload.domain.units import NS_PER_S
from baseload.policy.scaling import Choice, ScalingView, desired_replicas, has_slack, is_pressed

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
