"""A plan's question in a few lines."""

from collections.abc import Callable
from typing import Any

import pytest

from baseload.limits.catalogue.accelerators import read_prices
from baseload.limits.serving.predict import Predictor
from baseload.policy.plan.search import Found, search
from baseload.policy.plan.spec import Levels, PlanSpec, ServedModel, Site, Stock, Traffic


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return Predictor()


@pytest.fixture(scope="session")
def ask(predictor: Predictor) -> Callable[[PlanSpec], Found]:
    def asked(spec: PlanSpec) -> Found:
        shapes = {m.name: predictor.models.find(m.model)[0] for m in spec.models}
        return search(spec, predictor=predictor, prices=read_prices(), shapes=shapes)

    return asked


@pytest.fixture(scope="session")
def question() -> Callable[..., PlanSpec]:
    def made(**changes: Any) -> PlanSpec:
        model = ServedModel(
            name="chat",
            model=changes.pop("model", "meta-llama/Meta-Llama-3.1-8B"),
            traffic=changes.pop(
                "traffic",
                Traffic(requests_per_s=40, peak_requests_per_s=80, prompt_tokens=1000, output_tokens=200),
            ),
            levels=changes.pop("levels", Levels(ttft_ms=1500, tpot_ms=40)),
            **{key: changes.pop(key) for key in ("residency", "spare_replicas", "modes") if key in changes},
        )
        stocks = (
            Stock(accelerator="h100_sxm", usd_per_hour=3.0),
            Stock(accelerator="a100_sxm", usd_per_hour=1.5),
            Stock(accelerator="l4", usd_per_hour=0.7),
        )
        sites = changes.pop("sites", (Site(name="cloud", region="eu", accelerators=stocks),))
        return PlanSpec(models=(model,), sites=sites, **changes)

    return made
