"""Plans: ranking, limits, conflicts, what is not judged, and what would change the answer."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from baseload.domain.errors import SettingsError
from baseload.policy.plan.allocate import Bound, Column, allocate
from baseload.policy.plan.answer import PlanReport
from baseload.policy.plan.problem import broken
from baseload.policy.plan.search import Found
from baseload.policy.plan.spec import Levels, PlanLimits, PlanSpec, Site, Stock, Traffic, check_spec

Ask = Callable[[PlanSpec], Found]
Question = Callable[..., PlanSpec]


def test_the_cheapest_that_keeps_the_levels_comes_first(ask: Ask, question: Question) -> None:
    report = ask(question()).report
    answer = report.answers[0]
    assert report.feasible
    assert [c.usd_per_mtok for c in answer.ranked] == sorted(c.usd_per_mtok for c in answer.ranked)
    assert answer.chosen[0].usd_per_mtok <= answer.ranked[0].usd_per_mtok * 1.0001
    for choice in (*answer.chosen, *answer.ranked):
        assert choice.ttft_ms <= 1500
        assert choice.tpot_ms <= 40.01
        assert choice.requests_per_s * choice.replicas >= 80
        assert choice.accelerators == choice.replicas * choice.tp * choice.dp * choice.pp * max(
            1, choice.prefill_workers + choice.decode_workers
        )
        assert "modelled" in choice.basis.times
        assert choice.basis.price == "stated in the plan"
        assert 0 < choice.basis.tpot_expected_error < 1


def test_objectives_disagree_and_the_front_holds_all_of_their_favourites(ask: Ask, question: Question) -> None:
    by = {o: ask(question(objective=o)).report.answers[0] for o in ("usd_per_mtok", "tokens_per_joule", "latency")}
    assert by["latency"].chosen[0].answer_ms < by["usd_per_mtok"].chosen[0].answer_ms
    assert by["tokens_per_joule"].ranked[0].tokens_per_joule >= by["usd_per_mtok"].ranked[0].tokens_per_joule
    front = by["usd_per_mtok"].pareto
    assert [c.usd_per_mtok for c in front] == sorted(c.usd_per_mtok for c in front)
    for first in front:
        assert not any(
            other.usd_per_mtok < first.usd_per_mtok
            and other.answer_ms < first.answer_ms
            and other.tokens_per_joule > first.tokens_per_joule
            for other in front
        )


def test_levels_cost_money(ask: Ask, question: Question) -> None:
    strict = ask(question(levels=Levels(ttft_ms=400, tpot_ms=12))).report.answers[0].chosen[0]
    loose = ask(question(levels=Levels())).report.answers[0].chosen[0]
    assert strict.usd_per_mtok > loose.usd_per_mtok


def test_stock_and_spares(ask: Ask, question: Question) -> None:
    few = (Stock(accelerator="h100_sxm", count=1, usd_per_hour=1.0), Stock(accelerator="a100_sxm", usd_per_hour=9.0))
    spec = question(sites=(Site(name="one", accelerators=few), Site(name="two", accelerators=few)))
    found = ask(spec)
    assert found.solved is not None
    used: dict[tuple[str, str], int] = {}
    for choice in found.report.answers[0].chosen:
        used[choice.site, choice.accelerator] = used.get((choice.site, choice.accelerator), 0) + choice.accelerators
    assert used["one", "h100_sxm"] <= 1
    assert not broken(spec, found.solved)
    assert sum(c.requests_per_s * c.replicas for c in found.report.answers[0].chosen) >= 80
    base, spared = ask(question()).report, ask(question(spare_replicas=2)).report

    def replicas(report: PlanReport) -> dict[tuple[str, ...], int]:
        return {(c.accelerator, c.precision, c.layout, c.mode): c.replicas for c in report.answers[0].ranked}

    few_of, more_of = replicas(base), replicas(spared)
    both = [way for way in few_of if way in more_of]
    assert both
    assert all(more_of[way] == few_of[way] + 2 for way in both)


def test_what_binds_is_named_and_loosened(ask: Ask, question: Question) -> None:
    explained = ask(question()).report.answers[0].explained
    assert explained.binds in ("memory", "bandwidth", "compute", "network", "tpot", "ttft", "granularity")
    assert explained.relax[-1].what == "money"
    assert all(gain.usd_share < 0 for gain in explained.relax)
    tiny = question(traffic=Traffic(requests_per_s=0.1, prompt_tokens=100, output_tokens=50))
    assert ask(tiny).report.answers[0].explained.binds == "granularity"


def test_conflicts_are_minimal_and_each_way_out_is_one(ask: Ask, question: Question) -> None:
    spec = question(limits=PlanLimits(usd_per_month=500), levels=Levels(ttft_ms=1500, tpot_ms=15))
    found = ask(spec)
    assert not found.report.feasible
    conflict = found.report.conflict
    assert conflict is not None
    assert any(limit.startswith("budget") for limit in conflict.limits)
    assert found.report.totals is None
    budget = next(way for way in conflict.relax if way.startswith("budget"))
    needed = float(budget.split("→")[1].split("$")[0].replace(",", ""))
    assert ask(replace(spec, limits=PlanLimits(usd_per_month=1.001 * needed))).report.feasible
    assert not ask(replace(spec, limits=PlanLimits(usd_per_month=0.97 * needed))).report.feasible


def test_two_limits_that_each_cannot_be_kept_are_both_named(ask: Ask, question: Question) -> None:
    conflict = ask(question(limits=PlanLimits(usd_per_month=5, megawatts=1e-5))).report.conflict
    assert conflict is not None
    said = " ".join((*conflict.limits, *conflict.relax))
    assert "budget" in said
    assert "these conflict too: power limit" in said or "these conflict too: budget" in said
    assert "not the only conflict" in conflict.why


def test_residency_and_megawatts_are_limits_like_the_others(ask: Ask, question: Question) -> None:
    away = ask(question(residency=("us",))).report
    assert away.conflict is not None
    assert away.conflict.limits == ("residency of chat (us)",)
    dark = ask(question(limits=PlanLimits(megawatts=1e-5))).report
    assert dark.conflict is not None
    assert dark.conflict.limits == ("power limit ≤ 1e-05 MW",)


def test_nothing_helps_where_no_accelerator_can(ask: Ask, question: Question) -> None:
    site = Site(name="edge", accelerators=(Stock(accelerator="l4", usd_per_hour=1.0),))
    report = ask(question(model="meta-llama/Meta-Llama-3.1-405B", sites=(site,))).report
    assert report.conflict is not None
    assert report.conflict.limits == ()
    assert "memory of its largest replica" in report.not_judged[0].why


def test_blank_figures_are_named_never_guessed(ask: Ask, question: Question) -> None:
    stocks = (Stock(accelerator="v100_sxm", usd_per_hour=0.1), Stock(accelerator="h100_sxm", usd_per_hour=3.0))
    sites = (
        Site(name="a", accelerators=stocks),
        Site(name="b", kind="edge", accelerators=("l4",)),
        Site(name="c", tiers=("spot",), accelerators=("gaudi3",)),
    )
    report = ask(question(sites=sites)).report
    why = {(n.accelerator, n.site): n.why for n in report.not_judged}
    assert why["v100_sxm", "a"].startswith("cannot be judged: ")
    assert why["v100_sxm", "a"].endswith(" missing")
    assert why["l4", "b"] == "cannot be judged: missing (capex_usd)"
    assert "price missing (spot)" in why["gaudi3", "c"]


def test_sensitivity_says_what_changes(ask: Ask, question: Question) -> None:
    lines = {line.what: line for line in ask(question()).report.sensitivity}
    assert lines["traffic +20%"].usd_share is not None
    assert lines["traffic +20%"].usd_share > 0.05
    assert any("price of" in what for what in lines)
    assert sum("expected error" in what for what in lines) == 2


def test_owned_costs_are_computed_from_capital_power_and_space(ask: Ask, question: Question) -> None:
    def usd(**changes: Any) -> float:
        stock = Stock(accelerator="h100_sxm", capex_usd=30_000)
        site = Site(name="own", kind="owned", accelerators=(stock,), usd_per_kwh=0.1, pue=1.2)
        return ask(question(sites=(replace(site, **changes),))).report.answers[0].chosen[0].usd_per_hour

    assert usd(usd_per_kwh=0.3) > usd()
    assert usd(years=3.0) > usd()
    assert usd(usd_per_kw_month=150.0) > usd()


def test_two_models_share_a_stock() -> None:
    columns = [
        Column(
            "model a",
            "s",
            "x",
            rate=10.0,
            gpus=1,
            score=1.0,
            usd_per_hour=1.0,
            peak_w=1.0,
            mean_w=1.0,
            kg_per_hour=0.0,
        ),
        Column(
            "model a",
            "s",
            "y",
            rate=10.0,
            gpus=1,
            score=3.0,
            usd_per_hour=3.0,
            peak_w=1.0,
            mean_w=1.0,
            kg_per_hour=0.0,
        ),
        Column(
            "model b",
            "s",
            "x",
            rate=10.0,
            gpus=1,
            score=1.0,
            usd_per_hour=1.0,
            peak_w=1.0,
            mean_w=1.0,
            kg_per_hour=0.0,
        ),
    ]
    demands = {"model a": 20.0, "model b": 30.0}
    assert allocate(demands, columns, []) == [2, 0, 3]
    assert allocate(demands, columns, [Bound("x", 4.0, "gpus", "s", "x")]) == [0, 2, 3]
    assert allocate(demands, columns, [Bound("x", 2.0, "gpus", "s", "x")]) is None
    assert allocate({"model c": 1.0}, columns, []) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"traffic": Traffic(requests_per_s=1)}, "prompt_tokens"),
        ({"traffic": Traffic(requests_per_s=2, peak_requests_per_s=1, prompt_tokens=1, output_tokens=1)}, "peak"),
        ({"modes": ("sideways",)}, "modes"),
        ({"sites": (Site(name="a"), Site(name="a"))}, "two sites"),
        ({"limits": PlanLimits(megawatts=-1)}, "negative"),
    ],
)
def test_questions_that_are_none_are_refused(question: Question, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_spec(question(**changes), name="x.toml")


def test_a_site_mixes_kinds_of_one_model_only_where_one_is_too_few() -> None:
    def column(stock: str, rate: float, usd: float) -> Column:
        return Column(
            demand="model a", site="s", stock=stock, rate=rate, gpus=1, score=usd, usd_per_hour=usd, peak_w=1.0,
            mean_w=1.0, kg_per_hour=0.0,
        )  # fmt: skip

    columns = [column("cheap", 10.0, 1.0), column("dear", 10.0, 3.0), column("dear", 4.0, 1.7)]
    few = Bound("cheap at s", 2.0, "gpus", "s", "cheap")
    assert allocate({"model a": 20.0}, columns, [few]) == [2, 0, 0]
    assert allocate({"model a": 35.0}, columns, [few]) == [2, 2, 0]  # not three kinds: one a stock
    assert allocate({"model a": 35.0}, columns, []) == [4, 0, 0]
    plenty = Bound("cheap at s", 9.0, "gpus", "s", "cheap")
    assert allocate({"model a": 80.0}, columns, [plenty]) == [8, 0, 0]
