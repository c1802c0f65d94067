"""The control process goes down and comes back: what was known stays, what ran has ended, workers are adopted."""

import itertools
from typing import Any

import msgspec
import pytest

from baseload.core.control import ControlMachine
from baseload.domain.errors import JournalError, Reason
from baseload.domain.events import (
    ControlStarted,
    EnergyMeasured,
    FirstByteSent,
    KeyRevoked,
    ModelPut,
    ModelRemoved,
    RequestFinished,
    ShutdownAsked,
    WorkerExited,
    WorkerReady,
    WorkerStarted,
)
from baseload.domain.fleet import ReplicaState
from baseload.domain.model import ModelSpec, Price, Scaling
from baseload.domain.units import NS_PER_DAY, NS_PER_S
from baseload.domain.work import Outcome, ReplicaEntry, TokenCounts

T0 = 1_790_000_000 * NS_PER_S
DEAR = ModelSpec("m", "/m", scaling=Scaling(min_replicas=1), price=Price(usd_per_hour=3.6, busy_w=100, idle_w=10))
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
    stage.ready(*names)
    spans = stage.spans()
    assert sum(span.useful_ns for span in spans) == sum(entry.useful_ns for entry in stage.entries())
    assert sum(span.idle_ns for span in spans) == 2 * 50 * NS_PER_S, "they lived on: the gap was idle"
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


def spans_of(stage: Any, replica_id: str) -> list[ReplicaEntry]:
    """A replica's spans, which must tile."""
    spans = [span for span in stage.spans() if span.replica_id == replica_id]
    assert all(before.to_ns == after.from_ns for before, after in itertools.pairwise(spans))
    return spans


def test_days_are_split_at_midnight_even_while_down(stage: Any) -> None:
    names = stage.put(TWO)
    stage.ready(*names)
    stage.tell(ControlStarted("1", 1))
    crash_and_start(stage, down_s=3 * 86_400)
    assert not stage.spans(), "nothing is known of that time yet"
    stage.ready(names[0])
    spans = spans_of(stage, names[0])
    assert len(spans) >= 4
    for span in spans:
        assert span.from_ns // NS_PER_DAY == (span.to_ns - 1) // NS_PER_DAY
        assert (span.idle_ns, span.final) == (span.to_ns - span.from_ns, False)
    assert sum(span.to_ns - span.from_ns for span in spans) == 3 * NS_PER_DAY
    stage.exit(names[1], -9)
    (last,) = spans_of(stage, names[1])
    assert (last.from_ns, last.to_ns, last.final) == (T0, T0, True)


@pytest.mark.parametrize("end", ["reported gone", "never heard of", "ended as unusable"])
def test_a_power_loss_overnight_is_nobodys_bill(stage: Any, end: str) -> None:
    (replica_id,) = stage.put(DEAR)
    stage.tell(ControlStarted("1", 1))
    stage.ready(replica_id)
    asked = stage.ask()
    stage.now += 10 * NS_PER_S
    stage.answer(asked)
    stage.wait(30)
    stage.tell(KeyRevoked("nobody"))  # the last that was journaled
    known_ns = stage.now
    crash_and_start(stage, down_s=8 * 3_600)
    before = stage.machine.status(stage.now).replicas[0]
    assert before.idle_ns + before.useful_ns == 40 * NS_PER_S
    stage.wait(20)
    if end == "never heard of":
        stage.wait(41)
        assert stage.stopped() == [replica_id]
        stage.wait(600)  # a grid point or two, and nobody reports its exit
    if end == "ended as unusable":
        stage.tell(EnergyMeasured(replica_id, 10**12, "rapl"))
    stage.exit(replica_id, -9)
    spans = spans_of(stage, replica_id)
    assert spans[-1].final
    assert spans[-1].to_ns == known_ns
    assert sum(span.idle_ns for span in spans) == 30 * NS_PER_S
    assert sum(span.idle_cost_nusd for span in spans) == 30_000_000, "a thousandth of a dollar a second"
    assert sum(span.idle_energy_uj for span in spans) == 300_000_000, "ten watts for half a minute"
    shares = stage.entry(asked).useful_ns
    assert shares + sum(span.idle_ns + span.cold_ns for span in spans) == known_ns - T0
    assert stage.model().crashes == 0


def test_one_that_lived_on_is_accounted_for_over_the_gap(stage: Any) -> None:
    (replica_id,) = stage.put(DEAR)
    stage.ready(replica_id)
    crash_and_start(stage, down_s=1_000)
    stage.tell(ModelPut(msgspec.structs.replace(DEAR, price=Price(usd_per_hour=36.0, idle_w=10))))
    assert not stage.spans(), "what is not known to have passed has no price yet"
    stage.ready(replica_id)
    spans = spans_of(stage, replica_id)
    assert sum(span.idle_ns for span in spans) == 1_000 * NS_PER_S == stage.now - T0
    assert [span.to_ns % (300 * NS_PER_S) for span in spans[:-1]] == [0] * (len(spans) - 1)
    assert spans[-1].to_ns == stage.now
    assert sum(span.idle_cost_nusd for span in spans) == 1_000_000_000, "the gap at the price it began with"
    asked = stage.ask()
    stage.now += NS_PER_S
    stage.answer(asked)
    assert stage.entry(asked).cost_nusd == 10_000_000, "and from then on at the new one"


def test_energy_of_the_gap_is_estimated_and_not_taken_from_later_requests(stage: Any) -> None:
    (replica_id,) = stage.put(DEAR)
    stage.ready(replica_id)
    stage.now += 10 * NS_PER_S
    stage.tell(EnergyMeasured(replica_id, 200_000_000, "rapl"))
    crash_and_start(stage, down_s=100)
    stage.ready(replica_id)
    assert sum(span.idle_energy_uj for span in stage.spans()) == 2_200_000_000, "twenty watts, as last measured"
    asked = stage.ask()
    stage.now += 10 * NS_PER_S
    stage.tell(EnergyMeasured(replica_id, 500_000_000, "rapl"))
    stage.answer(asked)
    assert stage.entry(asked).energy_uj == 500_000_000


def test_killed_again_while_unconfirmed_the_first_last_instant_counts(stage: Any) -> None:
    first, second = stage.put(TWO)
    stage.ready(first, second)
    stage.now += 5 * NS_PER_S
    stage.tell(KeyRevoked("nobody"))
    crash_and_start(stage, down_s=3_600)
    stage.wait(7)
    crash_and_start(stage, down_s=3_600)
    stage.ready(first)
    stage.exit(second, -9)
    assert sum(span.idle_ns for span in spans_of(stage, first)) == stage.now - T0 == (5 + 7 + 7_200) * NS_PER_S
    (*_, last) = spans_of(stage, second)
    assert (last.to_ns, last.final) == (T0 + 5 * NS_PER_S, True)


def test_midnight_and_the_grid_pass_by_an_unconfirmed_account(stage: Any) -> None:
    stage.now = T0 // NS_PER_DAY * NS_PER_DAY + NS_PER_DAY - 30 * NS_PER_S
    stage.tell(ControlStarted("1", 1))
    first, second = stage.put(TWO)
    stage.ready(first, second)
    known_ns = stage.now
    crash_and_start(stage, down_s=20)
    stage.wait(30)  # over midnight, all the while unconfirmed
    copy = ControlMachine.restore(stage.machine.snapshot())
    assert not stage.spans()
    assert [entry.to_ns for entry in stage.machine.open_entries(stage.now)] == [known_ns] * 2
    for event in (WorkerReady(first, "http://w"), WorkerExited(second, -9)):
        assert copy.step(stage.now, event) == stage.tell(event), "restored while unconfirmed, it goes on alike"
    lived, ended = spans_of(stage, first), spans_of(stage, second)
    assert [span.to_ns for span in lived] == [known_ns + 30 * NS_PER_S, stage.now]
    assert lived[0].to_ns % NS_PER_DAY == 0
    assert [(span.to_ns, span.final) for span in ended] == [(known_ns, True)]


def test_administration_while_nothing_runs_starts_nothing_and_bills_nothing(stage: Any) -> None:
    (replica_id,) = stage.put(DEAR)
    stage.ready(replica_id)
    asked = stage.ask()
    started_ns = stage.machine.status(stage.now).started_ns
    stage.machine = ControlMachine.restore(stage.machine.snapshot())
    stage.timers.clear()
    stage.tell(ControlStarted("1", 1, offline=True), after_s=8 * 3_600)
    eager = msgspec.structs.replace(DEAR, name="e")
    stage.tell(KeyRevoked("nobody"), ModelPut(eager), ModelRemoved("m"))
    assert not stage.started()
    assert not stage.stopped()
    assert stage.entry(asked).ended_ns == T0
    assert stage.machine.status(stage.now).started_ns == started_ns
    crash_and_start(stage, down_s=3_600)
    assert len(stage.started()) == 1, "the model that was put meanwhile"
    stage.exit(replica_id, -9)
    (span,) = spans_of(stage, replica_id)
    assert (span.to_ns, span.final) == (T0, True)


def test_a_sign_of_life_after_it_was_given_up_counts(stage: Any) -> None:
    (replica_id,) = stage.put(DEAR)
    stage.ready(replica_id)
    crash_and_start(stage, down_s=1)
    stage.wait(61)
    assert stage.stopped() == [replica_id]
    stage.tell(WorkerReady(replica_id, "http://w"))
    stage.now += NS_PER_S
    stage.exit(replica_id, 0)
    assert sum(span.idle_ns for span in spans_of(stage, replica_id)) == stage.now - T0


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
