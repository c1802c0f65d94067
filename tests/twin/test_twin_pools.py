"""Prefill and decode apart: nothing is lost between the pools, times are those of both and of the way between."""

import msgspec
import pytest

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Price, Scaling
from baseload.limits.serving.replica import step_cost
from baseload.twin.pools import UnitCost
from baseload.twin.report import SimulateReport
from baseload.twin.run import Simulation, simulate
from baseload.twin.spec import Faults, Hardware, Physics, SimulateConfig, Source, Workload

MODEL = ModelSpec(
    name="m",
    source="simulated",
    scaling=Scaling(min_replicas=1, max_replicas=2),
    admission=Admission(max_concurrency_per_replica=64, max_queue=1000),
    engine=EngineSpec(max_seqs=32, max_step_tokens=4096),
    price=Price(usd_per_hour=1.0),
    context_tokens=16_384,
)
APART = Hardware(model="llama-3.1-8b", accelerator="h100-sxm", prefill_workers=1, decode_workers=2)
TOGETHER = Hardware(model="llama-3.1-8b", accelerator="h100-sxm")
SOURCE = Source(rate_per_s=6.0, duration_s=40.0, prompt_tokens=3000, output_tokens=120, spread=0.4, stream=1.0)
CONFIG = SimulateConfig(
    models=(MODEL,),
    hardware={"m": APART},
    workload=Workload(sources=(SOURCE,)),
    physics=Physics(start_ms=10, fork_ms=1),
    decisions=0,
)


def run(**changes: object) -> SimulateReport:
    report = simulate(msgspec.structs.replace(CONFIG, **changes))
    assert report.failure is None, report.failure
    return report


def test_every_request_is_answered_whole() -> None:
    report = run()
    simulation = Simulation(CONFIG)
    assert report.outcomes == {"ok": len(simulation.arrivals)}
    assert report.completion_tokens == sum(a.output_tokens for a in simulation.arrivals)
    assert report.prompt_tokens == sum(a.prompt_tokens for a in simulation.arrivals)
    assert "1 prefill and 2 decode workers" in report.step_time_basis


def test_exact_stepping_shows_the_same() -> None:
    for faults in (Faults(), Faults(crash_every_s=10.0, slow_every_s=5.0, disconnects=0.3)):
        fast, exact = (run(exact=exact, faults=faults, lean=False) for exact in (False, True))
        assert fast.digest == exact.digest


def test_the_cache_takes_its_time_between_the_pools() -> None:
    near, far = run(), run(hardware={"m": msgspec.structs.replace(APART, kv_gb_per_s=0.5)})
    tokens = 3000
    way_ms = tokens * 131_072 / 0.5e9 * 1e3  # 32 layers of 8 heads of 128, keys and values in two bytes
    assert far.ttft.p50_ms - near.ttft.p50_ms == pytest.approx(way_ms, rel=0.1)
    assert far.tpot.p50_ms == pytest.approx(near.tpot.p50_ms, rel=0.15)


def test_prompts_hold_up_no_answers() -> None:
    source = msgspec.structs.replace(SOURCE, rate_per_s=8.0)
    scaling = Scaling(min_replicas=3, max_replicas=3)
    apart = run(workload=Workload(sources=(source,)), models=(one_of(Scaling(min_replicas=1, max_replicas=1)),))
    together = run(
        workload=Workload(sources=(source,)), models=(one_of(scaling),), hardware={"m": TOGETHER}
    )  # as many accelerators
    assert apart.tpot.p99_ms < 0.85 * together.tpot.p99_ms
    assert apart.ttft.p50_ms > together.ttft.p50_ms, "one prefill worker instead of three"


def one_of(scaling: Scaling) -> ModelSpec:
    return msgspec.structs.replace(MODEL, scaling=scaling)


def test_answers_of_one_token_never_reach_the_decode_workers() -> None:
    source = msgspec.structs.replace(SOURCE, output_tokens=1, spread=0.0, requests=20)
    report = run(workload=Workload(sources=(source,)))
    assert report.outcomes == {"ok": 20}
    assert report.completion_tokens == 20


def test_a_unit_is_all_its_workers() -> None:
    cost = step_cost("llama-3.1-8b", "h100-sxm")
    unit = UnitCost(cost, cost, 3, 2, lambda _: 1)
    assert (unit.accelerators, unit.kv_tokens) == (5, 2 * cost.kv_tokens)
    assert unit.busy_w == pytest.approx(5 * cost.busy_w)
    simulation = Simulation(CONFIG)
    assert simulation.models[0].price.busy_w == pytest.approx(3 * cost.busy_w)
    given = Simulation(msgspec.structs.replace(CONFIG, hardware={}), costs={"m": unit})
    assert given.run().outcomes == {"ok": len(simulation.arrivals)}


def test_a_hunt_with_pools_apart() -> None:
    workload = Workload(requests=40, rate_per_s=10.0, prompt_tokens=800, output_tokens=40)
    hunt = simulate(msgspec.structs.replace(CONFIG, workload=workload, seeds=15)).hunt
    assert hunt is not None
    assert not hunt.failures
