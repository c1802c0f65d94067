"""The control process goes down and comes back: what was known stays, what ran has ended, workers are adopted."""

from typing import Any

import msgspec
import pytest

from baseload.core.control import ControlMachine
from baseload.domain.errors import JournalError, Reason
from baseload.domain.events import (
    ControlStarted,
    FirstByteSent,
    ModelPut,
    ModelRemoved,
    RequestFinished,
    ShutdownAsked,
    WorkerExited,
    WorkerReady,
    WorkerStarted,
)
from baseload.domain.fleet import ReplicaState
from baseload.domain.model import ModelSpec, Scaling
from baseload.domain.units import NS_PER_DAY, NS_PER_S
from baseload.domain.work import Outcome, TokenCounts

TWO = ModelSpec("m", "/m", scaling=Scaling(min_replicas=2, max_replicas=2))


def crash_and_start(stage: Any, *, down_s: float) -> None:
    """kill -9, recovery from a snapshot, start. The driver's timers are gone."""
    stage.machine = ControlMachine.restore(stage.machine.snapshot())
    stage.timers.clear()
    stage.tell(ControlStarted("1", 1), after_s=down_s)


def test_requests_in_flight_ended_with_the_process_at_the_last_instant_it_knew(stage: Any) -> None:
    names = stage.put(TWO)
    stage.ready(*names)
    begun, other = stage.ask(), stage.ask()
    stage.tell(FirstByteSent(begun), after_s=3)
    crash_and_start(stage, down_s=50)
    for request_id in (begun, other):
        entry = stage.entry(request_id)
        assert (entry.outcome, entry.reason) == (Outcome.FAILED, Reason.CONTROL_RESTARTED)
        assert entry.ended_ns == stage.now - 50 * NS_PER_S
        assert entry.useful_ns <= 3 * NS_PER_S
    spans = stage.spans()
    assert sum(span.useful_ns for span in spans) == sum(entry.useful_ns for entry in stage.entries())
    assert sum(span.idle_ns for span in spans) >= 100 * NS_PER_S, "the gap was idle"
    stage.tell(RequestFinished(begun, Outcome.OK, None, TokenCounts(1, 0, 1)))
    assert not stage.actions


def test_nothing_is_sent_to_a_replica_before_it_is_reported(stage: Any) -> None:
    first, second = stage.put(TWO)
    stage.ready(first, second)
    crash_and_start(stage, down_s=1)
    assert not stage.started(), "those known may still live"
    request_id = stage.ask()
    assert not stage.dispatched()
    stage.tell(WorkerReady(second, "http://new-port"))
    assert stage.dispatched() == [(request_id, second)]
    assert stage.decisions("adopt")[0].subject == second
    stage.tell(WorkerExited(first, -9))
    assert len(stage.started()) == 1
    assert stage.model().crashes == 0, "an end during the downtime is not a crash"


def test_a_worker_still_starting_is_waited_for(stage: Any) -> None:
    first, second = stage.put(TWO)
    stage.ready(first)
    crash_and_start(stage, down_s=1)
    stage.tell(WorkerStarted(first, 5, ""), WorkerStarted(second, 6, ""))
    states = [replica.state for replica in stage.machine.status(stage.now).replicas]
    assert states == [ReplicaState.STARTING] * 2
    stage.ready(first, second)
    assert stage.model().ready == 2
    first_status = stage.machine.status(stage.now).replicas[0]
    assert first_status.cold_ns + first_status.idle_ns == stage.now - first_status.started_ns


def test_a_replica_that_is_never_reported_is_ended(stage: Any) -> None:
    first, second = stage.put(TWO)
    stage.ready(first, second)
    crash_and_start(stage, down_s=1)
    stage.tell(WorkerReady(first, "http://w"))
    stage.wait(59)
    assert not stage.stopped()
    stage.wait(2)
    assert stage.stopped() == [second]


def test_what_was_leaving_before_still_leaves(stage: Any) -> None:
    first, second = stage.put(TWO)
    stage.ready(first, second)
    running = [stage.ask() for _ in range(8)]
    stage.tell(ModelRemoved("m"))
    assert running
    crash_and_start(stage, down_s=1)
    stage.tell(WorkerReady(first, "http://w"), WorkerStarted(second, 3, ""))
    assert stage.stopped() == [first, second]
    stage.exit(first, 0)
    stage.exit(second, 0)
    assert stage.machine.status(stage.now).models == ()


def test_a_remote_replica_needs_no_report(stage: Any) -> None:
    stage.put(ModelSpec("m", "http://10.0.0.1"))
    stage.ask()
    crash_and_start(stage, down_s=1)
    request_id = stage.ask()
    assert [name for name, _ in stage.dispatched()] == [request_id]


def test_after_an_orderly_end_the_next_start_begins_afresh(stage: Any) -> None:
    names = stage.put(TWO)
    stage.ready(*names)
    stage.tell(ShutdownAsked(NS_PER_S))
    for name in names:
        stage.exit(name, 0)
    crash_and_start(stage, down_s=100)
    fresh = stage.started()
    assert len(fresh) == 2
    assert not set(fresh) & set(names)
    stage.ready(*fresh)
    stage.ask()
    assert stage.dispatched()
    assert "ledger:" in stage.timers


def test_timers_are_set_again(stage: Any) -> None:
    stage.put(ModelSpec("m", "/m"))
    stage.ask()
    stage.ready(*stage.started())
    stage.answer("req_1")
    stage.wait(5)
    before = dict(stage.timers)
    crash_and_start(stage, down_s=1)
    assert before.keys() <= stage.timers.keys()


def test_days_are_split_at_midnight_even_while_down(stage: Any) -> None:
    names = stage.put(TWO)
    stage.ready(*names)
    crash_and_start(stage, down_s=3 * 86_400)
    spans = [span for span in stage.spans() if span.replica_id == names[0]]
    assert len(spans) >= 4
    for span in spans:
        assert span.from_ns // NS_PER_DAY == (span.to_ns - 1) // NS_PER_DAY
    assert sum(span.to_ns - span.from_ns for span in spans) == 3 * NS_PER_DAY


def test_a_foreign_or_damaged_snapshot_is_refused(stage: Any) -> None:
    data = stage.machine.snapshot()
    with pytest.raises(JournalError, match="damaged"):
        ControlMachine.restore(data[:-3])
    with pytest.raises(JournalError, match="damaged"):
        ControlMachine.restore(b"")
    with pytest.raises(JournalError, match="format 99"):
        ControlMachine.restore(msgspec.msgpack.encode((99, {})))


def test_administration_survives(stage: Any) -> None:
    stage.tell(ModelPut(TWO))
    machine = ControlMachine.restore(stage.machine.snapshot())
    assert machine.models() == stage.machine.models() == [TWO]
    assert machine.model("m") == TWO
    assert list(machine.keys()) == list(stage.machine.keys())
    assert machine.key_by_hash("1" * 64) == stage.machine.key_by_hash("1" * 64)
    assert machine.status(stage.now) == stage.machine.status(stage.now)
    assert (machine.seed, machine.policy_version) == (1, "1")
