"""Hours, prefixes, capacity in tokens and kinds of sites: what a plan makes of them."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from baseload.domain.errors import SettingsError
from baseload.policy.plan.answer import Day
from baseload.policy.plan.search import Found
from baseload.policy.plan.spec import (
    HOURS,
    Levels,
    PlanSpec,
    ServedModel,
    Site,
    Stock,
    Traffic,
    check_spec,
    with_hours,
)
from baseload.twin.plan_check import run_check

Ask = Callable[[PlanSpec], Found]
Question = Callable[..., PlanSpec]
CHEAP_AT_NIGHT = tuple(0.02 if hour < 8 else 0.30 for hour in range(HOURS))
CHEAP_AT_NOON = tuple(0.02 if 9 <= hour < 16 else 0.30 for hour in range(HOURS))
WAVE = tuple(float(10 + 3 * min(hour, HOURS - hour)) for hour in range(HOURS))


def halls(**changes: Any) -> tuple[Site, ...]:
    def stock(count: int) -> tuple[Stock, ...]:
        return (Stock(accelerator="l40s", count=count, capex_usd=9000),)

    shared = {"kind": "owned", "pue": 1.2, "gco2_per_kwh": 100.0, **changes}
    return (
        Site(name="night", region="eu", usd_per_kwh_by_hour=CHEAP_AT_NIGHT, accelerators=stock(3), **shared),
        Site(name="noon", region="eu", usd_per_kwh_by_hour=CHEAP_AT_NOON, accelerators=stock(40), **shared),
    )


def two(**changes: Any) -> PlanSpec:
    """A model with a wave that needs both halls, and work that may be done at any hour."""
    chat = ServedModel(
        name="chat",
        model="meta-llama/Meta-Llama-3.1-8B",
        modes=("aggregated",),
        traffic=Traffic(hours=WAVE, prompt_tokens=1500, output_tokens=200),
        levels=Levels(ttft_ms=1500, tpot_ms=40),
    )
    batch = replace(
        chat,
        name="batch",
        flexible=True,
        traffic=Traffic(requests_per_s=12.0, prompt_tokens=2000, output_tokens=300),
        levels=Levels(),
    )
    return with_hours(PlanSpec(models=(chat, batch), sites=halls(**changes)))


def day_of_plan(ask: Ask, spec: PlanSpec) -> Day:
    day = ask(spec).report.day
    assert day is not None
    return day


def test_every_request_is_served_once_and_moving_never_costs_more(ask: Ask) -> None:
    day = day_of_plan(ask, two())
    chat = [sum(load for _, load in row.places) for row in day.hours if row.model == "chat"]
    assert chat == pytest.approx(WAVE)
    batch = [sum(load for _, load in row.places) for row in day.hours if row.model == "batch"]
    assert sum(batch) == pytest.approx(12.0 * HOURS)
    assert max(batch) > 1.2 * min(batch)  # it goes where hours are cheap
    assert day.usd_per_day < 0.95 * day.usd_per_day_unshifted
    assert any(move.startswith("batch") for move in day.moves)


def test_carbon_may_be_what_work_is_moved_for(ask: Ask) -> None:
    dirty = tuple(500.0 if hour < 12 else 50.0 for hour in range(HOURS))
    spec = replace(two(gco2_per_kwh_by_hour=dirty, gco2_per_kwh=None), shift_by="carbon")
    hall = replace(spec.sites[0], accelerators=(Stock(accelerator="l40s", count=40, capex_usd=9000),))
    spec = replace(spec, sites=(hall,))
    by_carbon, by_price = day_of_plan(ask, spec), day_of_plan(ask, replace(spec, shift_by="price"))
    assert by_carbon.kg_co2_per_day is not None
    assert by_price.kg_co2_per_day is not None
    assert by_carbon.kg_co2_per_day < 0.95 * by_price.kg_co2_per_day
    assert by_carbon.usd_per_day > by_price.usd_per_day


def test_without_hours_there_is_no_day(ask: Ask, question: Question) -> None:
    assert ask(question()).report.day is None


def test_hours_fill_mean_and_peak_and_must_be_a_day() -> None:
    spec = two()
    assert spec.models[0].traffic.requests_per_s == pytest.approx(sum(WAVE) / HOURS)
    assert spec.models[0].traffic.peak_requests_per_s == max(WAVE)
    assert spec.sites[0].usd_per_kwh == pytest.approx(sum(CHEAP_AT_NIGHT) / HOURS)
    short = replace(spec, sites=(replace(spec.sites[0], usd_per_kwh_by_hour=(0.1, 0.2)),))
    with pytest.raises(SettingsError, match="has 2 values"):
        check_spec(short, name="plan")


def test_prefix_hits_save_and_the_twin_agrees(ask: Ask, question: Question) -> None:
    def usd_per_hour(share: float, mode: str) -> float:
        traffic = Traffic(requests_per_s=40, prompt_tokens=2000, output_tokens=100, shared_prefix=share)
        found = ask(question(traffic=traffic, modes=(mode,)))
        assert found.solved is not None
        assert run_check(found.solved.chosen["chat"][0], requests=300).holds
        return found.report.answers[0].chosen[0].usd_per_hour

    for mode in ("aggregated", "disaggregated"):
        assert usd_per_hour(0.7, mode) < 0.95 * usd_per_hour(0.0, mode)


def test_the_effect_of_prefix_hits_is_told(ask: Ask, question: Question) -> None:
    traffic = Traffic(requests_per_s=40, prompt_tokens=2000, output_tokens=100, shared_prefix=0.6)
    relax = ask(question(traffic=traffic, modes=("aggregated",))).report.answers[0].explained.relax
    told = [gain for gain in relax if gain.what == "prefix hits"]
    assert any("0%" in gain.by and gain.usd_share > 0.1 for gain in told)


def test_capacity_in_tokens_gives_back_the_rate_at_the_planned_mix(ask: Ask, question: Question) -> None:
    choice = ask(question(modes=("aggregated",))).report.answers[0].chosen[0]
    assert choice.prompt_tokens_per_s > 0
    seconds = 1000 / choice.prompt_tokens_per_s
    seconds += 200 / choice.output_tokens_per_s if choice.output_tokens_per_s else 0.0
    assert 1 / seconds == pytest.approx(choice.requests_per_s, rel=0.01)


@pytest.mark.parametrize("kind", ["owned", "region", "enterprise", "edge", "device"])
def test_every_kind_of_owned_site_is_a_tier_of_its_own(ask: Ask, question: Question, kind: Any) -> None:
    stock = Stock(accelerator="l40s", capex_usd=9000, count=40)
    sites = (Site(name="here", kind=kind, usd_per_kwh=0.1, pue=1.2, accelerators=(stock,)),)
    choice = ask(question(sites=sites)).report.answers[0].chosen[0]
    assert (choice.tier, choice.kind) == (kind, kind)
    assert choice.basis.price.startswith("computed")
