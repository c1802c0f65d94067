"""What happens to requests: admission, queue, dispatch, retry, refusal."""

from typing import Any

import pytest

from baseload.core.control import ControlMachine
from baseload.domain.errors import Reason
from baseload.domain.events import (
    DispatchFailed,
    FirstByteSent,
    KeyCreated,
    KeyRevoked,
    ModelRemoved,
    RequestFinished,
    ShutdownAsked,
    TimerFired,
    WorkerSampled,
)
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.tenant import Key, KeyLimits
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Outcome, Tier, TokenCounts


def spec(replicas: int = 1, *, most: int = 0, **admission: Any) -> ModelSpec:
    scaling = Scaling(min_replicas=replicas, max_replicas=most or replicas)
    return ModelSpec("m", "/models/m", scaling=scaling, admission=Admission(**admission))


def awake(stage: Any, replicas: int = 1, **admission: Any) -> list[str]:
    names: list[str] = stage.put(spec(replicas, **admission))
    stage.ready(*names)
    return names


def test_a_request_is_dispatched_at_once_and_recorded_once(stage: Any) -> None:
    (replica_id,) = awake(stage)
    request_id = stage.ask()
    assert stage.dispatched() == [(request_id, replica_id)]
    stage.tell(FirstByteSent(request_id), after_s=0.2)
    stage.tell(RequestFinished(request_id, Outcome.OK, None, TokenCounts(10, 2, 5)), after_s=0.3)
    entry = stage.entry(request_id)
    assert (entry.outcome, entry.attempts, entry.replica_id) == (Outcome.OK, 1, replica_id)
    assert entry.first_byte_ns - entry.dispatched_ns == NS_PER_S // 5
    assert entry.ended_ns - entry.arrived_ns == entry.useful_ns == NS_PER_S // 2
    assert entry.tokens == TokenCounts(10, 2, 5)
    stage.answer(request_id)
    assert len(stage.entries()) == 1, "told twice, recorded once"
    assert stage.model().completion_tokens_total == 5


def test_requests_queue_in_order_beyond_a_replicas_capacity(stage: Any) -> None:
    (replica_id,) = awake(stage, max_concurrency_per_replica=2)
    asked = [stage.ask() for _ in range(5)]
    assert stage.model().queued == 3
    stage.answer(asked[1])
    assert stage.dispatched() == [(asked[2], replica_id)]
    stage.tell(RequestFinished(asked[3], Outcome.CANCELLED, Reason.CLIENT_GONE, TokenCounts()))
    stage.answer(asked[0])
    assert stage.dispatched() == [(asked[4], replica_id)], "the one that left the queue is passed over"


def test_of_those_that_wait_the_highest_class_goes_first_and_nobody_for_ever(stage: Any) -> None:
    stage.tell(KeyCreated(Key("key_2", "fast", "2" * 64, stage.now, tier=Tier.PRIORITY)))
    (replica_id,) = awake(stage, max_concurrency_per_replica=1, max_wait_ns=600 * NS_PER_S)
    running = stage.ask()
    flex, first, second = stage.ask(tier=Tier.FLEX), stage.ask(), stage.ask()
    fast = stage.ask(key_id="key_2", tier=Tier.PRIORITY)
    for expected in (fast, first):
        stage.answer(running)
        assert stage.dispatched() == [(expected, replica_id)]
        running = expected
    stage.machine = ControlMachine.restore(stage.machine.snapshot())
    stage.wait(61)
    third = stage.ask(key_id="key_2", tier=Tier.DEFAULT)
    for expected in (second, flex, third):  # after a minute a class higher: second with priority, flex before third
        stage.answer(running)
        assert stage.dispatched() == [(expected, replica_id)]
        running = expected


def test_a_key_cannot_ask_for_a_higher_class_by_any_way(stage: Any) -> None:
    awake(stage)
    request_id = stage.ask(tier=Tier.PRIORITY)
    (refusal,) = stage.refused()
    assert (refusal.reason, stage.entry(request_id).outcome) == (Reason.FORBIDDEN, Outcome.REFUSED)


def test_a_full_queue_refuses_with_a_time_to_come_back(stage: Any) -> None:
    stage.put(spec(max_queue=2))
    stage.ask(), stage.ask()
    request_id = stage.ask()
    (refusal,) = stage.refused()
    assert (refusal.request_id, refusal.reason) == (request_id, Reason.QUEUE_FULL)
    assert refusal.retry_after_ns > 0
    assert stage.entry(request_id).outcome is Outcome.REFUSED
    assert stage.entry(request_id).replica_id == ""


def test_waiting_ends_at_the_earlier_of_the_two_deadlines(stage: Any) -> None:
    stage.put(spec(max_wait_ns=30 * NS_PER_S))
    patient, hurried = stage.ask(deadline_s=100), stage.ask(deadline_s=5)
    stage.wait(4.9)
    assert not stage.refused()
    stage.wait(0.2)
    assert [(refusal.request_id, refusal.reason) for refusal in stage.refused()] == [(hurried, Reason.DEADLINE)]
    stage.wait(25)
    assert [refusal.request_id for refusal in stage.refused()] == [patient]


def test_what_is_too_late_is_not_dispatched_even_before_its_timer(stage: Any) -> None:
    (replica_id,) = stage.put(spec())
    late, fine = stage.ask(deadline_s=1), stage.ask(deadline_s=9)
    stage.now += 2 * NS_PER_S
    stage.ready(replica_id)
    assert stage.dispatched() == [(fine, replica_id)]
    assert [refusal.request_id for refusal in stage.refused()] == [late]


def test_a_failed_attempt_goes_elsewhere_and_a_lost_replica_rests_until_it_shows_life(stage: Any) -> None:
    first, second = awake(stage, 2)
    request_id = stage.ask()
    ((_, lost),) = stage.dispatched()
    other = second if lost == first else first
    stage.tell(DispatchFailed(request_id, lost, Reason.WORKER_LOST, "connection refused"))
    assert stage.dispatched() == [(request_id, other)]
    assert "connection refused" in stage.decisions("retry")[0].why
    for _ in range(20):
        stage.ask()
        assert stage.dispatched()[0][1] == other
    stage.tell(WorkerSampled(lost, WorkerSample()))
    seen = set()
    for _ in range(20):
        stage.ask()
        seen.add(stage.dispatched()[0][1])
    assert lost in seen


def test_attempts_are_bounded(stage: Any) -> None:
    awake(stage, 4, max_attempts=3)
    request_id = stage.ask()
    tried = []
    for _ in range(3):
        ((_, replica_id),) = stage.dispatched()
        tried.append(replica_id)
        stage.tell(DispatchFailed(request_id, replica_id, Reason.WORKER_ERROR, "503"))
    assert len(set(tried)) == 3
    (refusal,) = stage.refused()
    assert refusal.reason is Reason.WORKER_ERROR
    assert refusal.retry_after_ns > 0
    entry = stage.entry(request_id)
    assert (entry.outcome, entry.attempts, entry.replica_id) == (Outcome.FAILED, 3, tried[-1])


def test_no_retry_where_no_other_replica_can_come(stage: Any) -> None:
    (replica_id,) = awake(stage)
    request_id = stage.ask()
    stage.tell(DispatchFailed(request_id, replica_id, Reason.WORKER_ERROR, "overloaded"))
    assert [refusal.reason for refusal in stage.refused()] == [Reason.WORKER_ERROR]


def test_a_lost_only_replica_may_be_replaced_so_its_requests_wait(stage: Any) -> None:
    (replica_id,) = awake(stage)
    request_id = stage.ask()
    stage.tell(DispatchFailed(request_id, replica_id, Reason.WORKER_LOST))
    assert not stage.refused()
    stage.exit(replica_id, -9)
    (fresh,) = stage.started()
    stage.ready(fresh)
    assert stage.dispatched() == [(request_id, fresh)]


def test_after_the_first_byte_there_is_no_retry(stage: Any) -> None:
    awake(stage, 2)
    request_id = stage.ask()
    ((_, replica_id),) = stage.dispatched()
    stage.tell(FirstByteSent(request_id))
    stage.tell(DispatchFailed(request_id, replica_id, Reason.WORKER_LOST))
    assert not stage.dispatched()
    assert not stage.refused()
    assert stage.entry(request_id).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (KeyLimits(requests_per_minute=2), Reason.RATE_LIMITED),
        (KeyLimits(tokens_per_minute=50), Reason.RATE_LIMITED),
        (KeyLimits(max_in_flight=2), Reason.TOO_MANY_IN_FLIGHT),
    ],
)
def test_a_keys_limits(stage: Any, limits: KeyLimits, reason: Reason) -> None:
    awake(stage)
    stage.tell(KeyCreated(Key("key_2", "two", "2" * 64, 0, limits=limits)))
    asked = [stage.ask(key_id="key_2") for _ in range(2)]
    assert stage.dispatched()
    refused = stage.ask(key_id="key_2")
    (refusal,) = stage.refused()
    assert (refusal.request_id, refusal.reason) == (refused, reason)
    assert refusal.retry_after_ns > 0
    assert stage.ask(key_id="key_1") in dict(stage.dispatched()), "another key is not concerned"
    for request_id in asked:
        stage.answer(request_id)
    stage.wait(refusal.retry_after_ns / NS_PER_S)
    assert stage.ask(key_id="key_2") in dict(stage.dispatched())


def test_unused_tokens_are_given_back(stage: Any) -> None:
    awake(stage)
    stage.tell(KeyCreated(Key("key_2", "two", "2" * 64, 0, limits=KeyLimits(tokens_per_minute=100))))
    for _ in range(4):  # 90 reserved each time, 15 used
        request_id = (
            stage.ask(key_id="key_2", tokens=90) if stage.count == 0 else stage.ask(key_id="key_2", tokens=50)
        )
        assert stage.dispatched()
        stage.answer(request_id)


def test_unknown_revoked_and_foreign_keys(stage: Any) -> None:
    awake(stage)
    stage.tell(KeyCreated(Key("key_2", "two", "2" * 64, 0, models=("other",))))
    for key_id, reason in (("key_9", Reason.WRONG_KEY), ("", Reason.WRONG_KEY), ("key_2", Reason.FORBIDDEN)):
        stage.ask(key_id=key_id)
        assert [refusal.reason for refusal in stage.refused()] == [reason]
    running = stage.ask()
    stage.tell(KeyRevoked("key_1"))
    assert stage.machine.key_by_hash("1" * 64) is None
    assert [key.key_id for key in list(stage.machine.keys())] == ["key_2"]
    stage.ask()
    assert [refusal.reason for refusal in stage.refused()] == [Reason.WRONG_KEY]
    stage.answer(running)
    assert stage.entry(running).outcome is Outcome.OK


def test_an_unknown_and_a_removed_model(stage: Any) -> None:
    stage.ask("nobody")
    assert [refusal.reason for refusal in stage.refused()] == [Reason.UNKNOWN_MODEL]
    stage.put(spec())
    waiting = stage.ask()
    stage.tell(ModelRemoved("m"))
    assert [(refusal.request_id, refusal.reason) for refusal in stage.refused()] == [(waiting, Reason.MODEL_REMOVED)]
    stage.ask()
    assert [refusal.reason for refusal in stage.refused()] == [Reason.UNKNOWN_MODEL]


def test_a_flood_of_refusals_leaves_few_decisions_and_every_entry(stage: Any) -> None:
    for _ in range(500):
        stage.ask("nobody")
    assert len(stage.entries()) == 500
    assert len(stage.decisions("refuse")) == 5
    stage.now += 11 * NS_PER_S
    stage.ask("nobody")
    assert "495 more" in stage.decisions("refuse")[-1].why


def test_a_known_prefix_draws_its_requests_to_one_replica(stage: Any) -> None:
    awake(stage, 4)
    stage.ask(prefix_hashes=(11, 12, 13))
    ((_, home),) = stage.dispatched()
    for _ in range(3):
        request_id = stage.ask(prefix_hashes=(11, 12, 99))
        assert stage.dispatched() == [(request_id, home)]
        stage.answer(request_id)


def test_load_spreads_over_replicas(stage: Any) -> None:
    names = awake(stage, 4, max_concurrency_per_replica=8)
    for _ in range(32):
        stage.ask()
        assert stage.dispatched(), "nothing waits while any replica has room"
    in_flight = {replica.replica_id: replica.in_flight for replica in stage.machine.status(stage.now).replicas}
    assert in_flight == dict.fromkeys(names, 8)


def test_the_first_byte_counts_once(stage: Any) -> None:
    awake(stage)
    request_id = stage.ask()
    stage.tell(FirstByteSent(request_id), after_s=1)
    stage.tell(FirstByteSent(request_id), after_s=1)
    stage.answer(request_id)
    entry = stage.entry(request_id)
    assert entry.first_byte_ns - entry.arrived_ns == NS_PER_S


def test_what_left_the_queue_leaves_nothing_behind(stage: Any) -> None:
    stage.put(spec())
    sizes = []
    for _ in range(2):
        for _ in range(300):
            request_id = stage.ask()
            stage.tell(RequestFinished(request_id, Outcome.CANCELLED, Reason.CLIENT_GONE, TokenCounts()))
        sizes.append(len(stage.machine.snapshot()))
    assert sizes[1] - sizes[0] < 2_500, "at most some 64 stale deadlines, however many came and went"


def test_a_timer_that_fires_early_does_nothing(stage: Any) -> None:
    stage.put(spec())
    stage.ask(deadline_s=5)
    (timer,) = [name for name in stage.timers if name.startswith("queue:")]
    stage.tell(TimerFired(timer), after_s=1)
    assert not stage.actions
    stage.wait(5)
    assert [refusal.reason for refusal in stage.refused()] == [Reason.DEADLINE], "and is still set"


def test_nothing_is_tried_again_during_an_orderly_end(stage: Any) -> None:
    awake(stage, 2)
    request_id, _keeps_the_other_busy = stage.ask(), stage.ask()
    replica_id = next(action.replica_id for action in stage.all if getattr(action, "request_id", "") == request_id)
    stage.tell(ShutdownAsked(60 * NS_PER_S))
    stage.tell(DispatchFailed(request_id, replica_id, Reason.WORKER_LOST))
    assert [refusal.reason for refusal in stage.refused()] == [Reason.SHUTTING_DOWN]
