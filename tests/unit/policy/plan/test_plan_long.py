"""Long prompts: groups that share a context are candidates, where they can matter, and told."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.serving.predict import Predictor
from baseload.policy.plan import options
from baseload.policy.plan.options import layouts_of
from baseload.policy.plan.prompts import moments
from baseload.policy.plan.search import Found
from baseload.policy.plan.spec import Levels, PlanSpec, ServedModel, Site, Stock, Traffic
from baseload.twin.plan_check import run_check

Ask = Callable[[PlanSpec], Found]
MODEL = ServedModel(
    name="reader",
    model="meta-llama/Meta-Llama-3.1-70B",
    precisions=("fp8",),
    modes=("aggregated",),
    traffic=Traffic(requests_per_s=1.0, prompt_tokens=32_000, output_tokens=300, prompt_cv=0.3),
    levels=Levels(ttft_ms=5000, tpot_ms=60),
)
SITE = Site(name="cloud", accelerators=(Stock(accelerator="h200_sxm", usd_per_hour=2.0),))


def test_contexts_are_shared_only_where_prompts_are_long_and_the_first_token_has_a_level(
    predictor: Predictor,
) -> None:
    shape, chip = predictor.models.find(MODEL.model)[0], read_catalogue().find("h200_sxm")

    def cuts(model: ServedModel) -> set[int]:
        found = list(layouts_of(model, shape, chip))
        assert all(layout.gpus <= model.max_accelerators for layout in found)
        return {layout.cp for layout in found}

    assert cuts(MODEL) == {1, 2, 4, 8}
    assert cuts(replace(MODEL, levels=Levels(tpot_ms=60))) == {1}
    assert cuts(replace(MODEL, traffic=replace(MODEL.traffic, prompt_tokens=4000))) == {1}
    assert cuts(replace(MODEL, traffic=replace(MODEL.traffic, shared_prefix=0.9))) == {1}  # most is in the cache


def test_a_shared_context_keeps_a_first_token_for_less_money(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PlanSpec(models=(MODEL,), sites=(SITE,))
    found = ask(spec)
    answer = found.report.answers[0]
    choice = answer.chosen[0]
    assert choice.cp > 1
    assert f"cp{choice.cp}" in choice.layout
    assert choice.accelerators == choice.replicas * choice.tp * choice.cp
    assert f"Cut over {choice.cp} groups" in answer.explained.why
    assert "no measurements" in choice.basis.note
    assert found.solved is not None
    assert run_check(found.solved.chosen["reader"][0], requests=300).holds
    monkeypatch.setattr(options, "CUTS", ())
    without = ask(spec).report.answers[0].chosen[0]
    assert without.cp == 1
    assert choice.usd_per_mtok < 0.9 * without.usd_per_mtok


def test_moments_of_times_that_grow_with_the_square() -> None:
    assert moments(lambda length: 2.0 * length, 100.0, 0.5) == pytest.approx((200.0, 0.25))
    mean, spread = moments(lambda length: length**2, 10.0, 0.5)
    assert mean == pytest.approx(100.0 * 1.25)
    assert spread == pytest.approx(1.25**4 - 1.0)  # log-normal again, of twice the sigma
    assert moments(lambda length: 3.0 + length, 100.0, 0.0) == pytest.approx((103.0, 0.0))
