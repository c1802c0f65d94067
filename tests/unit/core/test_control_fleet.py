"""What happens to replicas: start, wake, sleep, scale, drain, crash, replace, shut down."""

from typing import Any

import pytest

from baseload.domain.actions import Shutdown, StopWorker
from baseload.domain.errors import Reason
from baseload.domain.events import (
    ControlStarted,
    DispatchFailed,
    FirstByteSent,
    ModelPut,
    ModelRemoved,
    RequestFinished,
    ShutdownAsked,
    WorkerExited,
    WorkerReady,
    WorkerSampled,
    WorkerStarted,
)
from baseload.domain.fleet import ReplicaState, WorkerSample
from baseload.domain.model import Admission, EngineSpec, ModelSpec, Price, Scaling
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Outcome, TokenCounts


def spec(
    low: int = 0,
    high: int = 1,
    *,
    source: str = "/m",
    threads: int = 0,
    price: float = 0.1,
    idle: int = 60,
    **scaling: Any,
) -> ModelSpec:
    return ModelSpec(
        "m",
        source,
        scaling=Scaling(min_replicas=low, max_replicas=high, idle_ns=idle * NS_PER_S, **scaling),
        admission=Admission(max_concurrency_per_replica=2),
        engine=EngineSpec(threads=threads),
        price=Price(usd_per_hour=price),
    )


def states(stage: Any) -> dict[str, ReplicaState]:
    return {replica.replica_id: replica.state for replica in stage.machine.status(stage.now).replicas}


def test_asleep_wakes_on_the_first_request_and_sleeps_again(stage: Any) -> None:
    assert stage.put(spec()) == []
    assert stage.model().state == "asleep"
    request_id = stage.ask()
    (replica_id,) = stage.started()
    assert stage.model().state == "waking"
    stage.ask()
    assert not stage.started(), "one is on its way"
    stage.tell(WorkerStarted(replica_id, 77, ""), WorkerReady(replica_id, "http://w"))
    assert stage.dispatched() == [(request_id, replica_id), ("req_2", replica_id)]
    stage.answer(request_id), stage.answer("req_2")
    assert stage.model().state == "awake"
    stage.wait(59)
    assert stage.model().state == "awake"
    stage.wait(2)
    assert stage.stopped() == [replica_id]
    assert stage.model().state == "draining"
    stage.exit(replica_id, 0)
    assert stage.model().state == "asleep"
    assert stage.model().crashes == 0
    assert "no request for 60" in stage.decisions("sleep")[0].why
    assert [decision.what for decision in stage.decisions("wake")] == ["wake"]


def test_a_request_in_flight_keeps_it_awake(stage: Any) -> None:
    stage.put(spec())
    request_id = stage.ask()
    stage.ready(*stage.started())
    stage.wait(600)
    assert stage.model().state == "awake"
    stage.answer(request_id)


def test_the_minimum_is_kept_and_restored(stage: Any) -> None:
    names = stage.put(spec(2, 3))
    assert len(names) == 2
    stage.ready(*names)
    stage.exit(names[0], -9)
    (fresh,) = stage.started()
    assert fresh not in names
    assert stage.model().last_error.startswith("the worker was killed by signal 9")


def test_grows_on_delay_within_bounds_and_cooldown_and_gives_back(stage: Any) -> None:
    stage.put(spec(0, 3, scale_up_cooldown_ns=5 * NS_PER_S))
    asked = [stage.ask()]
    stage.ready(*stage.started())
    asked += [stage.ask() for _ in range(13)]
    for _ in range(6):
        stage.wait(3)
        stage.ready(*stage.started())
    assert stage.model().ready == 3
    assert (
        "has waited" in stage.decisions("scale_up")[0].why or "wait, more than" in stage.decisions("scale_up")[0].why
    )
    for request_id in asked:
        stage.answer(request_id)
    keeper = stage.ask()
    stage.wait(200)
    for name in [name for name, state in states(stage).items() if state is ReplicaState.STOPPING]:
        stage.exit(name, 0)
    stage.wait(200)
    for name in [name for name, state in states(stage).items() if state is ReplicaState.STOPPING]:
        stage.exit(name, 0)
    assert stage.model().ready == 1
    stage.answer(keeper)
    assert stage.entry(keeper).outcome is Outcome.OK
    assert stage.decisions("scale_down")


def test_one_scale_up_follows_another_only_after_the_cooldown(stage: Any) -> None:
    stage.put(spec(0, 4, scale_up_cooldown_ns=30 * NS_PER_S))
    for _ in range(3):
        stage.ask()
        stage.ready(*stage.started())
    stage.wait(29)
    assert not stage.started()
    stage.wait(2)
    (second,) = stage.started()
    stage.ready(second)
    for _ in range(4):
        stage.ask()
    stage.wait(28)
    assert not stage.started()
    stage.wait(3)
    assert len(stage.started()) >= 1


def test_grows_when_the_cache_stays_full(stage: Any) -> None:
    stage.put(spec(1, 2))
    (replica_id,) = list(states(stage))
    stage.ready(replica_id)
    stage.wait(15)
    stage.ask()
    for _ in range(8):
        stage.tell(WorkerSampled(replica_id, WorkerSample(running=1, kv_usage=0.97)))
        stage.wait(1)
    assert stage.model().starting == 1
    assert "memory or batch limit" in stage.decisions("scale_up")[0].why


def test_draining_never_cuts_a_running_request(stage: Any) -> None:
    names = stage.put(spec(2, 2))
    stage.ready(*names)
    asked = [stage.ask() for _ in range(4)]
    stage.tell(ModelPut(spec(1, 1)))
    assert not stage.stopped()
    (draining,) = [name for name, state in states(stage).items() if state is ReplicaState.DRAINING]
    late = stage.ask()
    assert not stage.dispatched(), "nothing new goes to it"
    for request_id in asked:
        stage.answer(request_id)
        stopped = stage.stopped()
        if stopped:
            break
    assert stopped == [draining]
    stage.exit(draining, 0)
    assert late not in [refusal.request_id for refusal in stage.refused()]
    assert stage.model().crashes == 0


def test_the_drain_timeout_is_the_last_bound(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1, drain_timeout_ns=20 * NS_PER_S))
    stage.ready(replica_id)
    request_id = stage.ask()
    stage.tell(ModelRemoved("m"))
    stage.wait(19)
    assert not stage.stopped()
    stage.wait(2)
    assert stage.stopped() == [replica_id]
    stage.exit(replica_id, -9)
    stage.tell(RequestFinished(request_id, Outcome.FAILED, Reason.WORKER_LOST, TokenCounts(10, 0, 3)))
    assert stage.entry(request_id).tokens.completion == 3
    assert stage.machine.status(stage.now).models == ()


def test_a_draining_replica_is_taken_back_when_needed(stage: Any) -> None:
    names = stage.put(spec(2, 2))
    stage.ready(*names)
    running = [stage.ask(), stage.ask()]
    stage.tell(ModelPut(spec(1, 2)))
    stage.tell(ModelPut(spec(1, 1)))
    assert list(states(stage).values()).count(ReplicaState.DRAINING) == 1
    stage.tell(ModelPut(spec(2, 2)))
    assert list(states(stage).values()) == [ReplicaState.READY] * 2
    assert not stage.started()
    for request_id in running:
        stage.answer(request_id)


def test_a_crash_loop_backs_off_says_why_and_refuses_from_the_third(stage: Any) -> None:
    stage.put(spec())
    first = stage.ask()
    waits = []
    for _ in range(3):
        (replica_id,) = [name for name, state in states(stage).items() if state is ReplicaState.STARTING]
        stage.exit(replica_id, 1, "ValueError: bad weights")
        retry_at = stage.model().retry_at_ns
        waits.append(retry_at - stage.now)
        if stage.refused():
            break
        assert not stage.started()
        assert stage.model().state == "backing off"
        stage.wait(waits[-1] / NS_PER_S)
    assert len(waits) == 3
    assert waits[0] < waits[1] < waits[2]
    (refusal,) = stage.refused()
    assert (refusal.request_id, refusal.reason) == (first, Reason.MODEL_UNAVAILABLE)
    assert refusal.retry_after_ns == waits[-1]
    assert "ValueError" not in refusal.message, "why it fails is the operator's to see, not every tenant's"
    assert "baseload status" in refusal.message
    assert "ValueError: bad weights" in stage.model().last_error
    assert stage.model().crashes == 3
    stage.ask()
    assert [refusal.reason for refusal in stage.refused()] == [Reason.MODEL_UNAVAILABLE], "refused at once"
    stage.wait(5)
    request_id = stage.ask()
    (replica_id,) = stage.started()
    stage.ready(replica_id)
    stage.answer(request_id)
    assert stage.model().crashes == 3, "one answer shows nothing yet"
    stage.wait(59)
    assert stage.model().crashes == 3
    stage.wait(1)
    assert stage.model().crashes == 0


def test_a_worker_that_crashes_after_each_answer_backs_off(stage: Any) -> None:
    stage.put(spec())
    starts, refusals = 0, []
    for _ in range(1_200):  # ten minutes, a request each half second
        request_id = stage.ask()
        starts += len(stage.started())
        refusals += stage.refused()
        fresh = [name for name, state in states(stage).items() if state is ReplicaState.STARTING]
        stage.ready(*fresh)
        if request_id in [name for name, _ in stage.dispatched()]:
            stage.answer(request_id)
            stage.exit(fresh[0], -11)
            starts += len(stage.started())
        stage.wait(0.5)
        starts += len(stage.started())
    assert 10 < starts < 25, "0.5 s doubling to 60 s, up to half of it taken off"
    assert stage.model().crashes >= 10
    assert {refusal.reason for refusal in refusals} == {Reason.MODEL_UNAVAILABLE}
    assert all(0 < refusal.retry_after_ns <= 60 * NS_PER_S for refusal in refusals)
    assert len(refusals) > 1_000
    assert "SIGSEGV" in stage.model().last_error


def test_a_crash_after_a_long_quiet_time_is_the_first_of_its_row(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1))
    stage.exit(replica_id, 1)
    stage.wait(1)
    (replica_id,) = list(states(stage))
    stage.ready(replica_id)
    stage.answer(stage.ask())
    stage.wait(3_600)
    stage.exit(replica_id, -9)
    assert stage.model().crashes == 1
    assert stage.started(), "it had served well: replaced at once"


def test_what_may_have_died_while_control_was_down_proves_nothing(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1))
    stage.exit(replica_id, 1)
    stage.wait(1)
    (replica_id,) = list(states(stage))
    stage.ready(replica_id)
    stage.answer(stage.ask())
    stage.timers.clear()
    stage.tell(ControlStarted("2", 1), after_s=3_600)
    assert stage.model().crashes == 1
    stage.exit(replica_id, -9)
    assert stage.model().crashes == 1


@pytest.mark.parametrize(("code", "left"), [(0, 0), (-9, 1)])
def test_a_short_life_that_ends_in_order_ends_the_row(stage: Any, code: int, left: int) -> None:
    stage.put(spec(idle=5))
    stage.ask()
    stage.exit(stage.started()[0], 1)
    stage.wait(1)
    (replica_id,) = list(states(stage))
    stage.ready(replica_id)
    stage.answer("req_1")
    stage.wait(6)
    assert stage.stopped() == [replica_id]
    assert stage.model().crashes == 1
    stage.exit(replica_id, code)
    assert stage.model().crashes == left


def test_a_good_replica_does_not_hide_a_bad_one(stage: Any) -> None:
    good, bad = stage.put(spec(2, 2))
    stage.ready(good)
    for _ in range(12):
        stage.exit(bad, 1)
        for _ in range(140):  # longer than the longest backing off; the good one answers all the while
            request_id = stage.ask()
            stage.answer(request_id)
            stage.wait(0.5)
            if stage.started():
                break
        (bad,) = [name for name, state in states(stage).items() if state is ReplicaState.STARTING]
    assert stage.model().crashes == 12
    stage.ready(bad)
    stage.wait(61)
    assert stage.model().crashes == 12, "steady, but nobody asked"
    stage.answer(stage.ask())
    assert stage.model().crashes == 0


def test_a_start_that_takes_too_long_is_a_crash(stage: Any) -> None:
    stage.put(spec(0, 1, start_timeout_ns=30 * NS_PER_S))
    stage.ask()
    (replica_id,) = stage.started()
    stage.wait(31)
    assert replica_id in stage.stopped()
    assert stage.model().last_error == "the worker was not ready within 30 s"
    stage.exit(replica_id, 0)
    stage.wait(1)
    assert stage.model().starting == 1


def test_changed_engine_settings_replace_replicas_one_by_one(stage: Any) -> None:
    old = stage.put(spec(2, 3))
    stage.ready(*old)
    running = stage.ask()
    stage.tell(ModelPut(spec(2, 3, threads=4)))
    for _ in range(6):
        stage.ready(*[name for name, state in states(stage).items() if state is ReplicaState.STARTING])
        assert stage.model().ready >= 1
        for name in [name for name, state in states(stage).items() if state is ReplicaState.STOPPING]:
            stage.exit(name, 0)
        stage.wait(1)
        if running:
            stage.answer(running)
            running = ""
    assert not set(old) & set(states(stage))
    assert stage.model().ready == 2
    assert all(entry.outcome is Outcome.OK for entry in stage.entries())


def test_the_old_go_on_serving_while_the_new_fail(stage: Any) -> None:
    (old,) = stage.put(spec(1, 2))
    stage.ready(old)
    stage.tell(ModelPut(spec(1, 2, source="/broken")))
    for _ in range(5):
        (broken,) = [name for name, state in states(stage).items() if state is ReplicaState.STARTING]
        stage.exit(broken, 1, "no config.json")
        request_id = stage.ask()
        assert stage.dispatched() == [(request_id, old)]
        stage.tell(RequestFinished(request_id, Outcome.REJECTED, None, TokenCounts()))
        stage.wait(61)
    assert "no config.json" in stage.model().last_error
    assert stage.model().crashes == 5


def test_a_remote_model_moves_without_a_gap(stage: Any) -> None:
    stage.put(spec(source="http://10.0.0.1"))
    running = stage.ask()
    ((_, old),) = stage.dispatched()
    stage.tell(ModelPut(spec(source="http://10.0.0.2")))
    stage.ask()
    ((_, new),) = stage.dispatched()
    assert new != old
    stage.answer(running)
    assert list(states(stage)) == [new]


def test_changed_scaling_or_price_restarts_nothing(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1))
    stage.ready(replica_id)
    request_id = stage.ask()
    stage.now += 3_600 * NS_PER_S
    stage.tell(ModelPut(spec(1, 1, price=0.5, start_timeout_ns=5 * NS_PER_S)))
    assert not stage.stopped()
    assert not stage.started()
    stage.now += 3_600 * NS_PER_S
    stage.answer(request_id)
    assert stage.entry(request_id).cost_nusd == 600_000_000, "an hour at each price"


def test_a_worker_nobody_wants_is_stopped(stage: Any) -> None:
    stage.put(spec())
    stage.tell(WorkerReady("m-99", "http://w"))
    assert stage.stopped() == ["m-99"]
    stage.tell(WorkerStarted("m-98", 5, ""))
    assert stage.stopped() == ["m-98"]
    request_id = stage.ask()
    (replica_id,) = stage.started()
    stage.tell(ModelRemoved("m"))
    assert stage.stopped() == [replica_id]
    stage.tell(WorkerReady(replica_id, "http://w"))
    assert not stage.dispatched()
    assert stage.entry(request_id).reason is Reason.MODEL_REMOVED
    stage.exit(replica_id, 0)
    stage.tell(WorkerExited(replica_id, 0), WorkerSampled(replica_id, WorkerSample()))
    assert not stage.actions


def test_a_stop_without_a_report_is_repeated_and_then_written_off(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1))
    stage.ready(replica_id)
    stage.tell(ModelRemoved("m"))
    stage.wait(1_000)
    assert len([action for action in stage.all if isinstance(action, StopWorker)]) == 4
    assert stage.machine.status(stage.now).replicas == ()


def test_a_lost_replica_without_a_sign_of_life_is_replaced(stage: Any) -> None:
    first, second = stage.put(spec(2, 2))
    stage.ready(first, second)
    request_id = stage.ask()
    ((_, lost),) = stage.dispatched()
    stage.tell(DispatchFailed(request_id, lost, Reason.WORKER_LOST))
    stage.wait(31)
    assert lost in stage.stopped()
    assert "no sign of life" in stage.model().last_error


def test_requests_of_a_gone_worker_end_even_if_nobody_reports_them(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1))
    stage.ready(replica_id)
    begun, waiting = stage.ask(), stage.ask()
    stage.tell(FirstByteSent(begun))
    stage.exit(replica_id, -11)
    stage.wait(29)
    assert not stage.entries()
    stage.wait(2)
    assert stage.entry(begun).reason is Reason.WORKER_LOST
    assert [refusal.request_id for refusal in stage.refused()] == [waiting]


@pytest.mark.parametrize("finished_first", [True, False])
def test_a_remote_model_is_one_replica_that_is_always_there(stage: Any, finished_first: bool) -> None:
    assert stage.put(spec(0, 4, source="https://api.example.com/v1")) == []
    assert stage.model().state == "remote"
    request_id = stage.ask()
    (dispatch,) = stage.actions[:1]
    assert dispatch.url == "https://api.example.com/v1"
    stage.wait(3_600)
    if finished_first:
        stage.answer(request_id)
    stage.tell(ModelRemoved("m"))
    assert not stage.stopped()
    if not finished_first:
        assert stage.machine.status(stage.now).replicas
        stage.answer(request_id)
    assert stage.machine.status(stage.now).replicas == ()
    assert not stage.stopped()


def test_a_lost_remote_rests_and_is_tried_again(stage: Any) -> None:
    stage.put(spec(source="http://10.0.0.1"))
    request_id = stage.ask()
    ((_, replica_id),) = stage.dispatched()
    stage.tell(DispatchFailed(request_id, replica_id, Reason.WORKER_LOST, "connection refused"))
    assert [refusal.reason for refusal in stage.refused()] == [Reason.WORKER_LOST]
    waiting = stage.ask()
    assert not stage.dispatched()
    stage.wait(3)
    assert stage.dispatched() == [(waiting, replica_id)]


def test_an_orderly_end_refuses_the_new_finishes_the_running_and_stops_the_workers(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1))
    stage.ready(replica_id)
    running = [stage.ask(), stage.ask()]
    waiting = stage.ask()
    stage.tell(ShutdownAsked(60 * NS_PER_S))
    assert [(refusal.request_id, refusal.reason) for refusal in stage.refused()] == [(waiting, Reason.SHUTTING_DOWN)]
    stage.ask()
    assert [refusal.reason for refusal in stage.refused()] == [Reason.SHUTTING_DOWN]
    assert not stage.stopped()
    for request_id in running:
        stage.answer(request_id)
    assert stage.stopped() == [replica_id]
    assert not stage.of(Shutdown)
    stage.exit(replica_id, 0)
    assert len(stage.of(Shutdown)) == 1
    assert not stage.timers
    stage.tell(ShutdownAsked(0), WorkerExited(replica_id, 0))
    assert not stage.of(Shutdown), "said once"


def test_an_orderly_end_has_a_last_bound(stage: Any) -> None:
    (replica_id,) = stage.put(spec(1, 1))
    stage.ready(replica_id)
    request_id = stage.ask()
    stage.tell(ShutdownAsked(10 * NS_PER_S))
    stage.wait(11)
    assert replica_id in stage.stopped()
    stage.wait(120)
    assert len(stage.of(Shutdown)) == 1
    assert stage.entry(request_id).reason is Reason.SHUTTING_DOWN


def test_zero_replicas_allowed_means_switched_off(stage: Any) -> None:
    stage.put(spec(0, 0))
    stage.ask()
    (refusal,) = stage.refused()
    assert refusal.reason is Reason.MODEL_UNAVAILABLE
    assert "zero replicas" in refusal.message
