"""The planner's formula and a twin run agree, from an idle replica to a nearly full one."""

import pytest
from msgspec.structs import replace

from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.serving.points import Layout
from baseload.limits.serving.predict import Predictor
from baseload.policy.plan.answer import Check
from baseload.policy.plan.candidates import candidate_for, unit_for
from baseload.policy.plan.offers import Place
from baseload.policy.plan.options import judge_layout
from baseload.policy.plan.spec import Levels, ServedModel, Site, Stock, Traffic
from baseload.twin.plan_check import run_check

PREDICTOR = Predictor(catalogue=read_catalogue())
WAYS = (
    ("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", Layout(gpus=1)),
    ("meta-llama/Meta-Llama-3.1-8B", "a100_sxm", Layout(gpus=1)),
    ("meta-llama/Meta-Llama-3.1-70B", "h200_sxm", Layout(gpus=4)),
    ("Qwen/Qwen3-30B-A3B", "h100_sxm", Layout(gpus=1)),
    ("deepseek-ai/DeepSeek-R1", "b200_sxm", Layout(gpus=8, ep=8)),
)
LENGTHS = ((100, 60), (800, 80), (2500, 100))
QUIET, BUSY = (0.2, 0.5, 0.7), 0.85  # of the greatest load that a replica carries at all


def checked(model: str, accelerator: str, layout: Layout, lengths: tuple[int, int], share: float) -> Check:
    """A replica at a share of its greatest load: formula beside run."""
    prompt, output = lengths
    traffic = Traffic(
        requests_per_s=1.0, prompt_tokens=prompt, output_tokens=output, prompt_cv=0.5, output_cv=0.5
    )  # fmt: skip
    levels = Levels(ttft_of="mean", tpot_of="mean")
    served = ServedModel(name="chat", model=model, traffic=traffic, levels=levels, modes=("aggregated",))
    shape = PREDICTOR.models.find(model)[0]
    (option,) = judge_layout(served, shape, accelerator, "", layout, PREDICTOR, 2048)
    unit = unit_for(option, traffic, levels)
    assert unit is not None
    there = replace(served, traffic=replace(traffic, requests_per_s=share * unit.rate))
    stock = Stock(accelerator=accelerator, usd_per_hour=1.0)
    place = Place(
        site=Site(name="here", pue=1.0, accelerators=(stock,)), stock=stock,
        chip=PREDICTOR.catalogue.find(accelerator), accelerator=accelerator, tier="on_demand", usd_per_hour=1.0,
        basis="", follows_load=False,
    )  # fmt: skip
    return run_check(candidate_for(unit, there, place, replicas=1), requests=500)


@pytest.mark.parametrize(("model", "accelerator", "layout"), WAYS)
def test_formula_and_twin_agree(model: str, accelerator: str, layout: Layout) -> None:
    quiet = [checked(model, accelerator, layout, lengths, share) for lengths in LENGTHS for share in QUIET]
    busy = [checked(model, accelerator, layout, lengths, BUSY) for lengths in LENGTHS[1:]]
    assert all(check.refused == 0 for check in (*quiet, *busy))
    assert all(abs(check.gap_tpot) < 0.18 for check in quiet), [check.gap_tpot for check in quiet]
    assert sum(abs(check.gap_tpot) for check in quiet) / len(quiet) < 0.08
    assert sum(abs(check.gap_tpot) for check in busy) / len(busy) < 0.25  # near the end a run is one of many
    assert sum(abs(check.gap_ttft) for check in quiet) / len(quiet) < 0.2
    assert sum(abs(check.gap_ttft) for check in busy) / len(busy) < 0.4
