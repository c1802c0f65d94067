"""Time, money and energy as the control machine records them."""

from typing import Any

from baseload.domain.events import EnergyMeasured, ModelPut, ModelRemoved, ShutdownAsked
from baseload.domain.model import Admission, ModelSpec, Price, Scaling
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Outcome, ReplicaEntry, RequestEntry

SPEC = ModelSpec(
    "m",
    "/m",
    scaling=Scaling(min_replicas=1),
    admission=Admission(max_concurrency_per_replica=4),
    price=Price(usd_per_hour=3.6, busy_w=100, idle_w=10),
)


def test_cold_idle_and_useful_tile_a_replicas_life(stage: Any) -> None:
    (replica_id,) = stage.put(SPEC)
    stage.now += 7 * NS_PER_S
    stage.ready(replica_id)
    stage.now += 2 * NS_PER_S
    first = stage.ask()
    stage.now += 4 * NS_PER_S
    second = stage.ask()
    stage.now += 6 * NS_PER_S
    stage.answer(first)
    stage.now += 1 * NS_PER_S
    stage.answer(second)
    stage.now += 5 * NS_PER_S
    stage.tell(ShutdownAsked(0))
    stage.exit(replica_id, 0)
    (span,) = stage.spans()
    assert (span.cold_ns, span.idle_ns, span.useful_ns) == (7 * NS_PER_S, 7 * NS_PER_S, 11 * NS_PER_S)
    assert (span.requests_ended, span.final) == (2, True)
    assert stage.entry(first).useful_ns == (4 + 3) * NS_PER_S, "alone, then half of six seconds"
    assert stage.entry(second).useful_ns == (3 + 1) * NS_PER_S
    assert stage.entry(first).cost_nusd == 7_000_000, "a thousandth of a dollar a second"
    assert (span.cold_cost_nusd, span.idle_cost_nusd) == (7_000_000, 7_000_000)
    assert stage.entry(second).energy_uj == 400_000_000
    assert (span.cold_energy_uj, span.idle_energy_uj) == (700_000_000, 70_000_000)
    assert {span.energy_basis, stage.entry(first).energy_basis} == {"modelled"}


def test_what_does_not_divide_goes_to_the_last_that_leaves(stage: Any) -> None:
    (replica_id,) = stage.put(SPEC)
    stage.ready(replica_id)
    asked = [stage.ask() for _ in range(3)]
    stage.now += 10
    for request_id in asked:
        stage.answer(request_id)
    assert [stage.entry(request_id).useful_ns for request_id in asked] == [3, 3, 4]


def test_measured_energy_is_shared_by_time_and_sums_to_the_readings(stage: Any) -> None:
    (replica_id,) = stage.put(SPEC)
    stage.now += 2 * NS_PER_S
    stage.ready(replica_id)
    asked = [stage.ask(), stage.ask()]
    stage.now += 6 * NS_PER_S
    stage.tell(EnergyMeasured(replica_id, 400_000_000, "rapl"))
    for request_id in asked:
        stage.answer(request_id)
    assert [stage.entry(request_id).energy_uj for request_id in asked] == [150_000_000] * 2
    assert stage.entry(asked[0]).energy_basis == "rapl"
    third = stage.ask()
    stage.now += 1 * NS_PER_S
    stage.answer(third)
    assert stage.entry(third).energy_uj == 50_000_000, "not read yet: at the last reading's 50 W"
    stage.now += 1 * NS_PER_S
    stage.tell(EnergyMeasured(replica_id, 70_000_000, "rapl"))
    stage.tell(ShutdownAsked(0))
    stage.exit(replica_id, 0)
    (span,) = stage.spans()
    assert span.energy_basis == "rapl"
    requests = sum(entry.energy_uj for entry in stage.entries())
    assert requests + span.idle_energy_uj + span.cold_energy_uj == 470_000_000


def test_spans_end_every_five_minutes_on_the_clock(stage: Any) -> None:
    (replica_id,) = stage.put(SPEC)
    stage.ready(replica_id)
    running = stage.ask()
    stage.wait(1_000)
    spans = stage.spans()
    assert [span.to_ns % (300 * NS_PER_S) for span in spans] == [0] * len(spans)
    assert len(spans) >= 3
    assert sum(span.useful_ns for span in spans) == spans[-1].to_ns - spans[0].from_ns
    stage.answer(running)
    assert stage.entry(running).useful_ns == 1_000 * NS_PER_S


def test_what_runs_now_is_shown_without_being_recorded(stage: Any) -> None:
    (replica_id,) = stage.put(SPEC)
    stage.ready(replica_id)
    asked = [stage.ask() for _ in range(3)]
    stage.now += 100
    before = stage.machine.snapshot()
    entries = stage.machine.open_entries(stage.now)
    assert stage.machine.snapshot() == before
    requests = [entry for entry in entries if isinstance(entry, RequestEntry)]
    (span,) = [entry for entry in entries if isinstance(entry, ReplicaEntry)]
    assert [entry.request_id for entry in requests] == asked
    assert {entry.ended_ns for entry in requests} == {0}
    assert sum(entry.useful_ns for entry in requests) == span.useful_ns == 100


def test_time_of_a_failed_attempt_is_part_of_the_request(stage: Any) -> None:
    (replica_id,) = stage.put(SPEC)
    stage.ready(replica_id)
    request_id = stage.ask()
    stage.now += 3 * NS_PER_S
    stage.exit(replica_id, -9)
    assert stage.spans()[0].useful_ns == 3 * NS_PER_S
    stage.wait(31)
    assert stage.entry(request_id).outcome is Outcome.FAILED
    assert stage.entry(request_id).useful_ns == 3 * NS_PER_S


def test_a_remote_replicas_life_is_that_of_its_model(stage: Any) -> None:
    stage.tell(ModelPut(ModelSpec("m", "http://10.0.0.1")))
    stage.now += 60 * NS_PER_S
    stage.tell(ModelRemoved("m"))
    (span,) = stage.spans()
    assert (span.idle_ns, span.cold_ns, span.final) == (60 * NS_PER_S, 0, True)


def test_time_never_runs_backwards(stage: Any) -> None:
    (replica_id,) = stage.put(SPEC)
    stage.ready(replica_id)
    request_id = stage.ask()
    stage.now -= 5 * NS_PER_S
    stage.answer(request_id)
    assert stage.entry(request_id).useful_ns == 0
    assert stage.entry(request_id).ended_ns == stage.entry(request_id).arrived_ns
