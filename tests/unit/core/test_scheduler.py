"""The gang scheduler: whole gangs or nothing, priority and quota, victims by lost work, reasons for all."""

import pytest

from baseload.core.grid import Grid, Topology
from baseload.core.scheduler import PATIENCE_NS, SchedulerMachine
from baseload.domain.jobs import (
    JobCheckpointed,
    JobEnded,
    JobFailed,
    JobSpec,
    JobSubmitted,
    NodeDown,
    NodeUp,
    Quota,
    RefuseJob,
    SiteCapped,
    SitePriced,
    StartJob,
    StopJob,
)
from baseload.domain.units import NS_PER_HOUR, NS_PER_S
from baseload.policy.placement import Victim, choose_switches, choose_victims

SMALL = Topology(sites=(8,), per_node=8, nodes_per_switch=4, switches_per_pod=2)


def job(name: str, accelerators: int, *, priority: int = 0, tenant: str = "t", **more: object) -> JobSubmitted:
    return JobSubmitted(JobSpec(name, tenant, accelerators, priority, **more))  # type: ignore[arg-type]


def kinds(actions: object) -> list[tuple[str, str]]:
    assert isinstance(actions, list)
    return [(type(action).__name__, action.job_id) for action in actions]


def test_a_gang_goes_under_one_switch_where_it_fits_best() -> None:
    assert choose_switches([4, 2, 3], 2, switches_per_pod=2) == [(1, 2)]
    assert choose_switches([4, 2, 3], 4, switches_per_pod=2) == [(0, 4)]
    assert choose_switches([4, 2, 3, 3], 6, switches_per_pod=2) == [(0, 4), (1, 2)], "the pod that just suffices"
    assert choose_switches([4, 2, 3, 3], 11, switches_per_pod=2) == [(0, 4), (2, 3), (3, 3), (1, 1)]
    assert choose_switches([1, 1], 3, switches_per_pod=2) == []


def test_victims_lose_the_least_work_and_no_more_than_needed() -> None:
    cheap, dear, low = Victim("cheap", 2, 10, 5), Victim("dear", 2, 900, 5), Victim("low", 1, 10_000, 1)
    assert choose_victims([dear, cheap, low], 1) == [low], "the lowest priority first, whatever it loses"
    assert choose_victims([dear, cheap], 2) == [cheap]
    assert choose_victims([dear, cheap, low], 2) == [cheap], "low alone would not do, and is spared"
    assert choose_victims([cheap], 3) == []


def test_small_jobs_share_a_node_and_leave_whole_ones_whole() -> None:
    machine = SchedulerMachine(SMALL)
    places = [machine.step(0, job(f"j{i}", 4))[0].places for i in range(2)]  # type: ignore[union-attr]
    assert places == [((0, 4),), ((0, 4),)]
    (start,) = machine.step(0, job("big", 56))
    assert isinstance(start, StartJob)
    assert len(start.places) == 7
    machine.check()
    assert machine.step(0, job("more", 1)) == []
    assert machine.pending == 1


def test_a_job_waits_for_all_it_needs_and_starts_when_it_is_there() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("a", 40))
    assert machine.step(0, job("b", 32)) == [], "three of its four nodes would be free"
    assert kinds(machine.step(5, JobEnded("a"))) == [("StartJob", "b")]
    assert "after 0 s" in machine.decisions[0].why
    machine.check()


def test_priority_stops_the_gang_that_loses_least() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("saved", 32))
    machine.step(0, job("unsaved", 32))
    machine.step(3600 * NS_PER_S, JobCheckpointed("saved"))
    actions = machine.step(3601 * NS_PER_S, job("urgent", 16, priority=5))
    assert kinds(actions) == [("StopJob", "saved"), ("StartJob", "urgent")]
    assert "urgent goes first" in machine.decisions[0].why
    assert machine.places_of("unsaved")
    machine.check()


def test_what_may_not_be_stopped_is_not() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("fixed", 64, preemptible=False))
    assert machine.step(0, job("urgent", 8, priority=9)) == []
    assert machine.pending == 1


def test_lent_accelerators_are_taken_back_for_their_owner() -> None:
    machine = SchedulerMachine(SMALL, {"owner": Quota(guaranteed=32), "guest": Quota(guaranteed=8, most=64)})
    machine.step(0, job("lent", 64, tenant="guest"))
    assert kinds(machine.step(NS_PER_S, job("mine", 32, tenant="owner"))) == [
        ("StopJob", "lent"),
        ("StartJob", "mine"),
    ]
    assert machine.step(2 * NS_PER_S, job("beyond", 40, tenant="owner")) == [], "that exceeds what it is owed"
    machine.check()


def test_a_quota_is_a_bound() -> None:
    machine = SchedulerMachine(SMALL, {"t": Quota(most=16)})
    machine.step(0, job("a", 16))
    assert machine.step(0, job("b", 8)) == []
    (refused,) = machine.step(0, job("c", 24))
    assert isinstance(refused, RefuseJob)
    assert "16" in refused.why
    assert kinds(machine.step(1, JobEnded("a"))) == [("StartJob", "b")]


@pytest.mark.parametrize(("accelerators", "said"), [(0, "no accelerators"), (72, "64"), (12, "whole nodes")])
def test_what_can_never_run_is_refused_with_the_reason(accelerators: int, said: str) -> None:
    (refused,) = SchedulerMachine(SMALL).step(0, job("x", accelerators))
    assert isinstance(refused, RefuseJob)
    assert said in refused.why


def test_smaller_jobs_pass_a_large_one_for_a_while() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("half", 32))
    machine.step(0, job("large", 64))
    assert kinds(machine.step(1, job("small", 8))) == [("StartJob", "small")]
    assert machine.step(PATIENCE_NS + 1, job("late", 8)) == [], "what becomes free gathers for the large one"
    machine.step(PATIENCE_NS + 2, JobEnded("small"))
    assert kinds(machine.step(PATIENCE_NS + 3, JobEnded("half"))) == [("StartJob", "large")]


def test_a_node_that_fails_takes_its_gangs_down_and_comes_back() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("a", 64))
    assert kinds(machine.step(1, NodeDown(3, "its fan"))) == [("StopJob", "a")]
    assert "its fan" in machine.decisions[0].why
    machine.check()
    assert kinds(machine.step(2, NodeUp(3))) == [("StartJob", "a")]
    machine.check()


def test_a_late_report_on_an_earlier_start_says_nothing() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("a", 8))
    machine.step(1, NodeDown(0, "broken"))
    assert machine.places_of("a"), "it went on elsewhere at once"
    assert machine.step(2, JobFailed("a", 1, "its node did not answer")) == []
    assert kinds(machine.step(3, JobFailed("a", 2, "lost"))) == [("StartJob", "a")]


def test_a_cap_sheds_the_lowest_and_lets_them_back() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("low", 32))
    machine.step(0, job("high", 32, priority=3))
    assert kinds(machine.step(1, SiteCapped(0, 40, "power is short"))) == [("StopJob", "low")]
    machine.check()
    assert machine.step(2, job("too much", 16)) == []
    back = kinds(machine.step(3, SiteCapped(0, 64, "power is back")))
    assert ("StartJob", "low") in back or ("StartJob", "too much") in back
    machine.check()


def test_a_job_waits_while_electricity_is_dear() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, SitePriced(0, 0.1))
    machine.step(0, job("thrifty", 8, most_usd_per_kwh=0.2))
    machine.step(0, job("any", 8))
    assert kinds(machine.step(1, SitePriced(0, 0.5))) == [("StopJob", "thrifty")]
    assert kinds(machine.step(NS_PER_HOUR, SitePriced(0, 0.1))) == [("StartJob", "thrifty")]


def test_what_is_told_twice_or_of_nobody_changes_nothing() -> None:
    machine = SchedulerMachine(SMALL)
    machine.step(0, job("a", 8))
    for event in (job("a", 8), JobEnded("b"), JobFailed("b", 1, ""), JobCheckpointed("b"), NodeUp(2)):
        assert machine.step(1, event) == []
    machine.check()
    assert machine.running == 1


def test_the_grid_knows_a_double_booking() -> None:
    grid = Grid(SMALL)
    grid.take("a", ((0, 8),))
    with pytest.raises(AssertionError, match="no room"):
        grid.take("b", ((0, 1),))
    grid.check({"a": ((0, 8),)})
    with pytest.raises(AssertionError, match="given twice"):
        grid.check({})
    assert StopJob("a", "").job_id == "a"


def test_switches_are_numbered_through_all_sites() -> None:
    topology = Topology(sites=(5, 4), nodes_per_switch=4)
    assert [topology.switch_of(node) for node in range(9)] == [0, 0, 0, 0, 1, 2, 2, 2, 2]
    with pytest.raises(IndexError):
        topology.switch_of(9)
