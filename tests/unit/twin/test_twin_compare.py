"""Comparisons: the same world on both sides, paired differences, policies that differ, and a check of a plan."""

import math
from pathlib import Path

import pytest
from msgspec.structs import replace

from baseload.core.control import ControlMachine
from baseload.domain.errors import SettingsError
from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.units import NS_PER_S
from baseload.limits.catalogue.accelerators import read_prices
from baseload.limits.serving.predict import Predictor
from baseload.limits.step_time import StepTimeSpec
from baseload.policy.plan.search import search
from baseload.policy.plan.spec import Levels, PlanSpec, ServedModel, Site, Stock, Traffic
from baseload.twin.baselines import machine_for
from baseload.twin.compare import common, compare, interval, measure
from baseload.twin.plan_check import run_check
from baseload.twin.plan_verify import confirming
from baseload.twin.spec import Faults, Physics, Policies, SimulateConfig, Slo, Workload

FAST = StepTimeSpec(basis="stated: an engine", fixed_ms=8.0, prefill=((512, 60.0),), decode=((32, 8.0),))


def setting(
    *, scaling: Scaling | None = None, policies: Policies | None = None, requests: int = 150
) -> SimulateConfig:
    model = ModelSpec(
        name="m",
        source="simulated",
        scaling=scaling or Scaling(min_replicas=1, max_replicas=6, requests_per_s=2.0, scale_down_ns=10 * NS_PER_S),
        admission=Admission(max_queue=10_000, max_concurrency_per_replica=16),
        engine=EngineSpec(max_seqs=16, max_step_tokens=512),
        context_tokens=16_384,
    )
    return SimulateConfig(
        models=(model,),
        workload=Workload(requests=requests, rate_per_s=5.0, prompt_tokens=400, output_tokens=60, stream=1.0),
        physics=Physics(start_ms=1_000, kv_tokens=100_000, step_time=FAST),
        slo=Slo(ttft_ms=800, tpot_ms=40),
        policies=policies or Policies(),
    )


def test_the_same_on_both_sides_is_no_difference() -> None:
    a, b, notes = common(setting(), setting())
    report = compare(a, b, seeds=2)
    assert notes == []
    assert all(d.difference == 0 and not d.better for d in report.differences)
    assert report.outcomes_a == report.outcomes_b
    assert "No difference" in report.verdict


def test_fixed_at_peak_costs_more_and_the_interval_says_so() -> None:
    fixed = setting(scaling=Scaling(min_replicas=6, max_replicas=6))
    report = compare(*common(fixed, setting())[:2], names=("fixed", "ours"), seeds=3, warmup_s=10)
    cost = report.differences[0]
    assert cost.better == "B"
    assert cost.high < 0
    assert cost.relative < -0.2
    assert "ours costs" in report.verdict
    hours = next(d for d in report.differences if d.name == "replica-hours")
    assert hours.a > hours.b
    assert report.outcomes_a[0].starts == 6


def test_figures_are_those_of_the_ledger() -> None:
    whole, timeline = measure(setting())
    late, _ = measure(setting(), warmup_s=10)
    assert whole.usd == pytest.approx(whole.replica_hours * 0.10)
    assert late.replica_hours < whole.replica_hours
    assert late.requests < whole.requests == 150
    assert 0 < whole.attainment <= 1
    assert whole.kilojoules > 0
    assert timeline


@pytest.mark.parametrize("routing", ["round_robin", "least_loaded", "random"])
@pytest.mark.parametrize("scaling", ["ours", "request_rate"])
def test_simple_policies_serve_too_and_keep_every_invariant(routing: str, scaling: str) -> None:
    policies = Policies(routing=routing, scaling=scaling, requests_per_replica_s=2.0, rate_window_s=10.0)
    assert machine_for(policies) is not ControlMachine
    outcome, _ = measure(replace(setting(policies=policies, requests=60), checked=True))
    assert outcome.unserved == 0
    assert outcome.starts > 1


def test_ours_is_the_production_machine_itself() -> None:
    assert machine_for(Policies()) is ControlMachine
    with pytest.raises(SettingsError, match="sideways"):
        machine_for(Policies(routing="sideways"))


def test_both_sides_get_one_world(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n1,20,6\n")
    other = replace(setting(requests=9), slo=Slo(ttft_ms=1), faults=Faults(crash_every_s=100.0))
    a, b, notes = common(setting(), other, trace=trace)
    assert a.workload == b.workload
    assert a.workload.trace == str(trace)
    assert (b.slo, b.faults) == (a.slo, a.faults)
    assert notes == ["B's own faults gave way to A's", "B's own levels gave way to A's"]
    with pytest.raises(SettingsError, match="same models"):
        common(setting(), replace(setting(), models=()))


def test_an_interval_needs_more_than_one_value() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert low == pytest.approx(2.0 - 4.303 / math.sqrt(3))
    assert high == pytest.approx(2.0 + 4.303 / math.sqrt(3))
    assert math.isnan(interval([5.0])[1])


def plan_spec(levels: Levels, **changes: object) -> PlanSpec:
    model = ServedModel(
        name="chat",
        model="meta-llama/Meta-Llama-3.1-8B",
        traffic=Traffic(requests_per_s=20, prompt_tokens=800, output_tokens=100),
        levels=levels,
        **changes,  # type: ignore[arg-type]
    )
    site = Site(name="cloud", accelerators=(Stock(accelerator="a100_sxm", usd_per_hour=1.5),))
    return PlanSpec(models=(model,), sites=(site,), check_requests=300)


@pytest.mark.parametrize("mode", ["aggregated", "disaggregated"])
def test_the_twin_confirms_the_formula(mode: str) -> None:
    spec = plan_spec(Levels(ttft_ms=1500, ttft_of="p90", tpot_ms=50), modes=(mode,))
    predictor = Predictor()
    shapes = {"chat": predictor.models.find("meta-llama/Meta-Llama-3.1-8B")[0]}
    found = search(spec, predictor=predictor, prices=read_prices(), shapes=shapes)
    assert found.solved is not None
    # One replica near its limit: single runs differ by a fifth, so several are averaged.
    checks = [run_check(found.solved.chosen["chat"][0], requests=4000, seed=seed) for seed in range(1, 5)]
    assert all(check.refused == 0 for check in checks)
    assert abs(sum(check.gap_tpot for check in checks) / len(checks)) < 0.15
    assert -0.7 < sum(check.gap_ttft for check in checks) / len(checks) < 0.6
    report = search(spec, predictor=predictor, prices=read_prices(), shapes=shapes, confirm=confirming()).report
    assert report.answers[0].checks[0].holds
    assert report.totals is not None
    assert report.totals.usd_per_hour == pytest.approx(report.answers[0].chosen[0].usd_per_hour)
