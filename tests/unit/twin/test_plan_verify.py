"""A plan that is recommended is whole: run as it stands, and within every limit that was declared."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baseload.limits.catalogue.accelerators import read_prices
from baseload.limits.money import HOURS_PER_MONTH
from baseload.limits.serving.predict import Predictor
from baseload.policy.plan.answer import Check, PlanReport
from baseload.policy.plan.candidates import Candidate, unit_for
from baseload.policy.plan.explain import explain
from baseload.policy.plan.search import Confirm, Found, search
from baseload.policy.plan.spec import (
    Levels,
    PlanLimits,
    PlanSpec,
    ServedModel,
    Site,
    Stock,
    Traffic,
    peak_of,
)
from baseload.twin.plan_check import rate_of, run_check
from baseload.twin.plan_verify import ROUNDS, confirming

Ask = Callable[..., Found]
SMALL = "meta-llama/Meta-Llama-3.1-8B"
OTHER = "Qwen/Qwen3-8B"


@pytest.fixture(scope="module")
def ask() -> Ask:
    predictor = Predictor()

    def asked(spec: PlanSpec, confirm: Confirm | None = None) -> Found:
        shapes = {m.name: predictor.models.find(m.model)[0] for m in spec.models}
        return search(spec, predictor=predictor, prices=read_prices(), shapes=shapes, confirm=confirm)

    return asked


def served(name: str = "chat", *, rate: float = 40.0, **changes: object) -> ServedModel:
    shape = {
        "model": SMALL,
        "modes": ("aggregated",),
        "traffic": Traffic(requests_per_s=rate / 2, peak_requests_per_s=rate, prompt_tokens=800, output_tokens=150),
        "levels": Levels(ttft_ms=1500, tpot_ms=40),
        "max_accelerators": 2,
    }
    return ServedModel(name=name, **{**shape, **changes})  # type: ignore[arg-type]


def hall(name: str, region: str = "eu", *, count: int = 0, power_mw: float = 0.0) -> Site:
    stocks = (
        Stock(accelerator="h100_sxm", capex_usd=30_000, count=count),
        Stock(accelerator="a100_sxm", capex_usd=15_000, count=count),
    )
    return Site(
        name=name, kind="owned", region=region, accelerators=stocks, power_mw=power_mw, usd_per_kwh=0.1, pue=1.2,
        gco2_per_kwh=300.0,
    )  # fmt: skip


def truth_of(candidate: Candidate, spread: int) -> float:
    """What a replica would really carry of the formula's greatest load: a whim of the layout, the same each time."""
    option = candidate.unit.option
    said = f"{spread} {candidate.model.name} {option.accelerator} {option.layout} {option.precision}"
    drawn = sha256(f"{said} {option.curve.step_tokens}".encode()).digest()[0] / 255
    return 1.1 - drawn * spread / 100


def whimsical(spread: int, seen: list[Candidate]) -> Callable[..., Check]:
    """Runs whose outcome is `truth_of`, and nothing else."""
    return carrying(lambda candidate: truth_of(candidate, spread), seen)


def carrying(truth: Callable[[Candidate], float], seen: list[Candidate]) -> Callable[..., Check]:
    """Runs in which a replica carries so much of the formula's greatest load."""

    def run(candidate: Candidate, **_: object) -> Check:
        seen.append(candidate)
        unit, levels = candidate.unit, candidate.model.levels
        whole = unit_for(unit.option, candidate.model.traffic, levels, network_ms=candidate.place.site.network_ms)
        assert whole is not None
        over = rate_of(candidate) / (truth(candidate) * whole.rate)
        tpot_ms = levels.tpot_ms * min(over, 1.5)
        return Check(
            requests=1, replicas=1, formula_ttft_ms=1.0, twin_ttft_ms=1.0, formula_tpot_ms=candidate.tpot_ms,
            twin_tpot_ms=tpot_ms, gap_ttft=0.0, gap_tpot=0.0, attainment=1.0, refused=0, holds=over <= 1.0,
        )  # fmt: skip

    return run


def assert_within(spec: PlanSpec, report: PlanReport) -> None:
    """From what the report says alone."""
    totals = report.totals
    assert totals is not None
    choices = [(m, c) for m, one in zip(spec.models, report.answers, strict=True) for c in one.chosen]
    regions = {site.name: site.region for site in spec.sites}
    for model, choice in choices:
        assert not model.residency or regions[choice.site] in model.residency
    for site in spec.sites:
        here = [c for _, c in choices if c.site == site.name]
        for stock in site.accelerators:
            assert isinstance(stock, Stock)
            used = sum(c.accelerators for c in here if c.accelerator == stock.accelerator)
            assert not stock.count or used <= stock.count
        assert not site.power_mw or sum(c.peak_kw for c in here) <= 1e3 * site.power_mw
    limits = spec.limits
    close = 1 + 1e-12  # sums in another order
    assert not limits.usd_per_month or totals.usd_per_month <= close * limits.usd_per_month
    assert not limits.megawatts or totals.peak_mw <= close * limits.megawatts
    carbon = totals.tonnes_co2_per_month
    assert carbon is not None
    assert not limits.tonnes_co2_per_month or carbon <= close * limits.tonnes_co2_per_month
    assert totals.accelerators == sum(c.accelerators for _, c in choices)
    assert totals.usd_per_month == pytest.approx(sum(c.usd_per_hour for _, c in choices) * HOURS_PER_MONTH)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rates=st.tuples(st.floats(5, 400), st.floats(5, 400)),
    counts=st.tuples(st.sampled_from([0, 2, 7, 30]), st.sampled_from([0, 3, 12])),
    power_mw=st.sampled_from([0.0, 0.01, 0.03]),
    limits=st.builds(
        PlanLimits,
        usd_per_month=st.sampled_from([0.0, 10_000.0, 30_000.0]),
        megawatts=st.sampled_from([0.0, 0.015, 0.04]),
        tonnes_co2_per_month=st.sampled_from([0.0, 3.0]),
    ),
    residency=st.sampled_from([(), ("eu",), ("us",)]),
    spread=st.integers(10, 105),
)
def test_no_declared_limit_is_ever_exceeded(
    ask: Ask,
    rates: tuple[float, float],
    counts: tuple[int, int],
    power_mw: float,
    limits: PlanLimits,
    residency: tuple[str, ...],
    spread: int,
) -> None:
    models = (served("a", rate=rates[0], residency=residency), served("b", rate=rates[1], model=OTHER))
    sites = (hall("here", count=counts[0], power_mw=power_mw), hall("there", "us", count=counts[1]))
    spec = PlanSpec(models=models, sites=sites, limits=limits)
    seen: list[Candidate] = []
    found = ask(spec, confirming(run=whimsical(spread, seen)))
    report = found.report
    if not report.feasible:
        assert report.conflict is not None
        assert report.totals is None
        assert not report.answers
        return
    assert report.checked
    assert_within(spec, report)
    assert found.solved is not None
    for model, answer in zip(spec.models, report.answers, strict=True):
        assert all(check.holds for check in answer.checks)
        chosen = found.solved.chosen[model.name]
        assert sum(rate_of(c) * c.replicas for c in chosen) == pytest.approx(peak_of(model.traffic), rel=1e-4)
        for candidate in chosen:  # whatever the formula says: the truth
            whole = unit_for(candidate.unit.option, model.traffic, model.levels)
            assert whole is not None
            assert rate_of(candidate) <= 1.0001 * truth_of(candidate, spread) * whole.rate


def test_a_way_that_carries_less_gets_more_replicas_and_says_so(ask: Ask) -> None:
    stock = Stock(accelerator="h100_sxm", capex_usd=30_000)
    site = Site(name="here", kind="owned", region="eu", accelerators=(stock,), usd_per_kwh=0.1, pue=1.2)
    spec = PlanSpec(models=(served(rate=2000, max_accelerators=1, precisions=("fp8",)),), sites=(site,))
    formula = ask(spec)
    seen: list[Candidate] = []
    found = ask(spec, confirming(run=carrying(lambda _: 0.7, seen)))
    assert found.solved is not None
    assert formula.solved is not None
    (candidate,) = found.solved.chosen["chat"]
    (answer,) = found.report.answers
    assert answer.checks[0].raised > 0
    assert 0.6 < answer.chosen[0].share_of_formula <= 0.72  # whole replicas: each is then given less
    assert found.solved.usd_per_hour > 1.2 * formula.solved.usd_per_hour
    assert any(rate_of(candidate) == pytest.approx(rate_of(one), rel=1e-3) for one in seen)  # run as it stands
    assert found.report.totals is not None
    assert found.report.totals.usd_per_hour == pytest.approx(found.solved.usd_per_hour)
    assert answer.ranked[0].replicas == candidate.replicas  # the ranking knows what was found


def test_why_is_told_of_groups_of_workers_where_aggregated_is_allowed_too(ask: Ask) -> None:
    model = served(modes=("disaggregated",))
    found = ask(PlanSpec(models=(model,), sites=(hall("here"),)))
    assert found.solved is not None
    (candidate, *_) = found.solved.chosen["chat"]
    both = replace(candidate, model=served())
    explained = explain(both, found.problem.shapes["chat"], found.problem.predictor, "usd_per_mtok")
    assert explained.relax


def test_what_no_run_confirms_is_no_plan_and_names_the_limits(ask: Ask) -> None:
    spec = PlanSpec(models=(served(rate=400),), sites=(hall("here"),))
    by_formula = ask(spec).solved
    assert by_formula is not None
    budget = 1.02 * by_formula.usd_per_hour * HOURS_PER_MONTH
    tight = PlanSpec(models=spec.models, sites=spec.sites, limits=PlanLimits(usd_per_month=budget))
    assert ask(tight).report.feasible
    seen: list[Candidate] = []
    report = ask(tight, confirming(run=whimsical(90, seen))).report
    assert not report.feasible
    assert report.conflict is not None
    assert "The formula alone would plan chat:" in report.conflict.why
    assert any(limit.startswith("budget") for limit in report.conflict.limits)
    assert any(way.startswith("budget: ") and "→" in way for way in report.conflict.relax)


def test_who_never_keeps_a_level_is_given_up_after_bounded_runs(ask: Ask) -> None:
    spec = PlanSpec(models=(served(rate=40),), sites=(hall("here"),))
    seen: list[Candidate] = []

    def never(candidate: Candidate, **_: object) -> Check:
        seen.append(candidate)
        return Check(
            requests=1, replicas=1, formula_ttft_ms=1.0, twin_ttft_ms=9e9, formula_tpot_ms=1.0, twin_tpot_ms=9e9,
            gap_ttft=0.0, gap_tpot=0.0, attainment=0.0, refused=0, holds=False,
        )  # fmt: skip

    report = ask(spec, confirming(run=never)).report
    assert not report.feasible
    assert report.conflict is not None
    assert any("TPOT" in limit or "TTFT" in limit for limit in report.conflict.limits)
    assert 0 < len(seen) <= 7 * (ROUNDS + 4)


def test_groups_of_prefill_and_decode_workers_are_run_at_once(ask: Ask) -> None:
    traffic = Traffic(requests_per_s=60, prompt_tokens=2000, output_tokens=100, shared_prefix=0.3)
    model = served(traffic=traffic, modes=("disaggregated",), max_accelerators=1)
    found = ask(PlanSpec(models=(model,), sites=(hall("here"),)))
    assert found.solved is not None
    candidate = found.solved.chosen["chat"][0]
    assert candidate.unit.prefill_workers
    check = run_check(candidate, requests=600)
    assert (check.refused, check.note) == (0, "")
    assert abs(check.gap_tpot) < 0.25
    transfer_ms = candidate.unit.option.transfer_ms
    assert check.twin_ttft_ms > transfer_ms + candidate.unit.option.cost.prefill_ns(1400, 600) / 1e6
