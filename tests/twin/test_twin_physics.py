"""The twin's physics: what a run of a few requests must come to, worked out by hand."""

import itertools

from baseload.domain.actions import Refuse
from baseload.domain.errors import Reason
from baseload.domain.events import ControlStarted
from baseload.domain.model import Admission, EngineSpec, ModelSpec, Price, Scaling
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.domain.work import Outcome, ReplicaEntry, RequestEntry
from baseload.limits.step_time import StepTimeSpec, StepTimeTable
from baseload.twin.report import SimulateReport
from baseload.twin.run import Simulation, simulate
from baseload.twin.spec import Faults, Physics, SimulateConfig, Workload
from baseload.twin.swarm import drawn_config
from baseload.twin.workers import Life, Worker

TABLE = StepTimeSpec(
    basis="stated: a test", fixed_ms=2, prefill=((100, 50.0),), decode=((1, 1.0), (8, 8.0)), context=((1000, 1.0),)
)
MODEL = ModelSpec(
    name="m",
    source="simulated",
    scaling=Scaling(min_replicas=1, max_replicas=1, idle_ns=5 * NS_PER_S),
    admission=Admission(max_concurrency_per_replica=16),
    engine=EngineSpec(max_step_tokens=64, max_seqs=8),
    price=Price(usd_per_hour=3.6, busy_w=100.0, idle_w=10.0),
    context_tokens=4096,
)


def config(workload: Workload, faults: Faults | None = None, physics: Physics | None = None) -> SimulateConfig:
    physics = physics or Physics(step_time=TABLE, start_ms=1000)
    return SimulateConfig(seed=3, models=(MODEL,), workload=workload, physics=physics, faults=faults or Faults())


def entries_of(run: Simulation) -> list[RequestEntry]:
    return [entry for item in run.world.journal for entry in item.entries() if isinstance(entry, RequestEntry)]


def test_a_lone_request_takes_exactly_its_steps() -> None:
    run = Simulation(config(Workload(requests=1, rate_per_s=0.1, prompt_tokens=150, output_tokens=4, spread=0)))
    assert run.run().failure is None
    (entry,) = entries_of(run)
    table = StepTimeTable(TABLE)
    chunks = [(64, 64), (64, 128), (22, 150)]  # tokens in the step, positions read by its end
    prefill = sum(table.step_ns(prefill_tokens=n, decode_rows=0, context_tokens=c) for n, c in chunks)
    decode = sum(table.step_ns(prefill_tokens=0, decode_rows=1, context_tokens=c) for c in (151, 152, 153))
    assert (entry.phases.queue_ns, entry.phases.prefill_ns, entry.phases.decode_ns) == (0, prefill, decode)
    assert entry.tokens.completion == 4
    # In the ledger it has the whole replica: from dispatch to the report of its end, the network's time on top.
    assert 0 < entry.useful_ns - prefill - decode < 2 * NS_PER_MS


def test_time_money_and_energy_of_a_run_add_up() -> None:
    report = simulate(config(Workload(requests=40, rate_per_s=2.0, prompt_tokens=60, output_tokens=10, spread=0.4)))
    assert report.failure is None
    life_s = report.useful_s + report.idle_s + report.cold_s
    assert abs(report.usd - life_s * 3.6 / 3600) < 1e-6
    assert abs(report.joules - ((report.useful_s + report.cold_s) * 100 + report.idle_s * 10)) < 1.0
    assert report.energy_basis == "modelled"
    assert report.outcomes == {"ok": 40}
    assert report.cold_starts == 1


def test_a_busier_replica_batches_answers_later_and_makes_more() -> None:
    def at(rate: float) -> SimulateReport:
        return simulate(config(Workload(requests=120, rate_per_s=rate, prompt_tokens=30, output_tokens=20, spread=0)))

    calm, busy = at(1.0), at(30.0)
    assert busy.tpot.p50_ms > 1.5 * calm.tpot.p50_ms
    assert busy.tokens_per_s > 5 * calm.tokens_per_s
    assert busy.e2e.p99_ms > calm.e2e.p99_ms


def test_a_shared_prefix_is_found_in_the_cache() -> None:
    cold = simulate(config(Workload(requests=50, rate_per_s=1.0, prompt_tokens=200, output_tokens=5, spread=0)))
    warm = simulate(
        config(
            Workload(
                requests=50,
                rate_per_s=1.0,
                prompt_tokens=200,
                output_tokens=5,
                spread=0,
                shared_prefix=1.0,
                prefixes=1,
            )
        )
    )
    assert cold.cached_tokens == 0
    assert warm.cached_tokens == 49 * 96  # six full blocks of 16 of the 100 common tokens; the first finds none
    assert warm.ttft.p50_ms < 0.7 * cold.ttft.p50_ms


def test_faults_do_what_they_say() -> None:
    workload = Workload(requests=150, rate_per_s=5.0, prompt_tokens=60, output_tokens=20)

    def with_(faults: Faults) -> SimulateReport:
        report = simulate(config(workload, faults))
        assert report.failure is None
        return report

    assert with_(Faults()).outcomes == {"ok": 150}
    assert with_(Faults(disconnects=1.0)).outcomes.get("cancelled", 0) > 5
    assert with_(Faults(crash_every_s=4.0)).cold_starts > 3
    assert with_(Faults(lost_dispatches=0.5)).reasons.get("worker_lost", 0) > 5
    assert with_(Faults(control_restart_every_s=5.0)).restarts > 2
    assert with_(Faults(start_fails=0.9)).cold_starts > 1
    assert with_(Faults(slow_starts=1.0, slow_factor=30)).queue.max_ms > 20 * with_(Faults()).queue.max_ms
    assert with_(Faults(admin_every_s=1.0)).digest != with_(Faults()).digest
    assert with_(Faults(clock_stands_every_s=1.0)).digest != with_(Faults()).digest


def test_a_worker_that_crashes_after_each_answer_backs_off_while_clients_are_told_when_to_come_back() -> None:
    run = Simulation(
        config(
            Workload(requests=600, rate_per_s=1.0, prompt_tokens=60, output_tokens=5, stream=0.0),
            Faults(crash_after_answer=1.0),
        )
    )
    report = run.run()
    assert report.failure is None
    assert 8 < report.cold_starts < 30, "ten minutes at full speed would be hundreds"
    assert report.outcomes["ok"] >= 5, "it does answer between two crashes"
    assert report.reasons["model_unavailable"] > 400
    refusals = [
        action
        for item in run.world.journal
        for action in item.actions
        if isinstance(action, Refuse) and action.reason is Reason.MODEL_UNAVAILABLE
    ]
    assert all(0 < refusal.retry_after_ns <= 60 * NS_PER_S for refusal in refusals)
    assert all("SIGSEGV" not in refusal.message for refusal in refusals), "clients are not told the machine's affairs"


def test_a_power_loss_is_billed_to_nobody() -> None:
    run = Simulation(
        config(
            Workload(requests=600, rate_per_s=1.0, prompt_tokens=60, output_tokens=20),
            Faults(power_loss_every_s=30.0),
        )
    )
    report = run.run()
    assert report.failure is None
    journal = run.world.journal
    gaps = [
        (before.at_ns, after.at_ns)
        for before, after in itertools.pairwise(journal)
        if isinstance(after.event, ControlStarted)
    ]
    spans = [entry for item in journal for entry in item.entries() if isinstance(entry, ReplicaEntry)]
    assert len(gaps) == report.restarts > 3
    assert sum(end_ns - start_ns for start_ns, end_ns in gaps) > 120 * NS_PER_S
    assert any(span.final and span.to_ns in dict(gaps) for span in spans), "some ended with the power"
    for start_ns, end_ns in gaps:
        assert not [span for span in spans if span.from_ns < end_ns and span.to_ns > start_ns]


def test_the_swarm_crashes_workers_at_every_moment_of_their_lives() -> None:
    seen: dict[str, int] = {}
    die = Worker.die

    def watched(self: Worker, exit_code: int) -> None:
        if self.life is not Life.DEAD and exit_code == -9:
            begun = [self.emitted(exchange) > 0 for exchange in self._exchanges.values()]
            doing = ("decode" if any(begun) else "prefill") if begun else "idle" if self.life is Life.READY else ""
            moment = doing or self.life.value
            seen[moment] = seen.get(moment, 0) + 1
        die(self, exit_code)

    Worker.die = watched  # type: ignore[method-assign]
    try:
        for seed in range(1, 41):
            Simulation(drawn_config(SimulateConfig(), seed=seed), is_hunt=True).run()
    finally:
        Worker.die = die  # type: ignore[method-assign]
    assert set(seen) >= {"starting", "idle", "prefill", "decode"}, seen


def test_outcomes_of_clients_and_ledger_agree() -> None:
    run = Simulation(
        config(
            Workload(requests=150, rate_per_s=5.0, prompt_tokens=60, output_tokens=20),
            Faults(crash_every_s=4.0, disconnects=0.3, lost_dispatches=0.1),
        )
    )
    assert run.run().failure is None
    entries = {entry.request_id: entry for entry in entries_of(run)}
    assert len(entries) == 150
    assert {client.outcome for client in run.world.ended_clients} > {Outcome.OK, Outcome.CANCELLED}
    for client in run.world.ended_clients:
        entry = entries[client.request.request_id]
        assert entry.tokens.completion == client.finished_tokens.completion
        if client.outcome is not Outcome.REFUSED:  # of those refused after a failed attempt, the ledger says FAILED
            assert entry.outcome is client.outcome
