"""How long a plan takes, and how far its formula is from the twin.

    python bench/plan.py [--checks 12]

One model on every accelerator kind of the catalogue (prices stated, so that all kinds are judged), then the twin
beside the formula for answers spread over the ranking, then the shipped examples. Times are of one moment here.
"""

import argparse
import time
from pathlib import Path

from baseload.cli.plan import answer
from baseload.cli.plan_question import read_spec
from baseload.limits.catalogue.accelerators import read_catalogue, read_prices
from baseload.limits.serving.predict import Predictor
from baseload.policy.plan.candidates import better
from baseload.policy.plan.search import search
from baseload.policy.plan.spec import Levels, PlanSpec, ServedModel, Site, Stock, Traffic
from baseload.twin.plan_check import run_check
from baseload.twin.plan_verify import confirming

EXAMPLES = Path(__file__).parents[1] / "configs" / "plan"


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checks", type=int, default=12)
    options = parser.parse_args()
    catalogue = read_catalogue()
    predictor = Predictor(catalogue=catalogue)
    stocks = tuple(
        Stock(accelerator=name, usd_per_hour=entry.usd_per_hour or 2.0) for name, entry in catalogue.entries.items()
    )
    model = ServedModel(
        name="chat",
        model="meta-llama/Meta-Llama-3.1-70B",
        traffic=Traffic(requests_per_s=20, peak_requests_per_s=40, prompt_tokens=1000, output_tokens=200),
        levels=Levels(ttft_ms=2000, tpot_ms=50),
    )
    spec = PlanSpec(name="one model", models=(model,), sites=(Site(name="all", accelerators=stocks),))
    shapes = {"chat": predictor.models.find(model.model)[0]}
    began = time.perf_counter()
    found = search(spec, predictor=predictor, prices=read_prices(), shapes=shapes)
    formula_s = time.perf_counter() - began
    began = time.perf_counter()
    report = search(spec, predictor=predictor, prices=read_prices(), shapes=shapes, confirm=confirming()).report
    total_s = time.perf_counter() - began
    judged = sum(bool(found.problem.judged[("chat", s.accelerator)].options) for s in stocks)
    kinds = len(stocks)
    print(
        f"{kinds} accelerator kinds, {judged} with options: {formula_s:.1f} s, with the twin's check {total_s:.1f} s"
    )
    first = report.answers[0].chosen[0]
    print(f"  chosen: {first.replicas} × {first.accelerator} {first.layout} {first.precision} {first.mode}\n")
    candidates = sorted(found.problem.candidates(spec, model), key=lambda c: better(c, "usd_per_mtok"))
    print(
        f"{'accelerator':<14} {'layout':<12} {'mode':<14} {'TTFT p99 formula → twin, ms':>30} "
        f"{'TPOT formula → twin, ms':>26}"
    )
    gaps = []
    for candidate in candidates[:: max(1, len(candidates) // options.checks)][: options.checks]:
        check = run_check(candidate, requests=spec.check_requests)
        option = candidate.unit.option
        gaps.append((abs(check.gap_ttft), abs(check.gap_tpot)))
        print(
            f"{option.accelerator:<14} {option.layout:<12} {option.mode:<14} {check.formula_ttft_ms:>10.0f} → "
            f"{check.twin_ttft_ms:>6.0f} ({check.gap_ttft:+5.0%}) {check.formula_tpot_ms:>10.1f} → "
            f"{check.twin_tpot_ms:>5.1f} ({check.gap_tpot:+5.0%})"
        )
    ttft, tpot = (sum(gap[i] for gap in gaps) / len(gaps) for i in (0, 1))
    print(f"mean gap: TTFT p99 {ttft:.0%}, TPOT mean {tpot:.0%}\n")
    for path in sorted(EXAMPLES.glob("*.toml")):
        began = time.perf_counter()
        result = answer(path)
        print(f"{read_spec(path).name}: {time.perf_counter() - began:.1f} s, feasible: {result.feasible}")


if __name__ == "__main__":
    main()
