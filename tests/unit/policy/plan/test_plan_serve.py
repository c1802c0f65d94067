"""A replica's load curve against what must hold of it, whatever the figures."""

import math

import numpy as np
import pytest
from msgspec.structs import replace

from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.replica import StepCost, step_cost
from baseload.policy.plan.pipeline import pipelined
from baseload.policy.plan.serve import (
    aggregated,
    best_point,
    calm_point,
    day_of,
    decode_pool,
    point_at,
    prefill_pool,
    unit_of,
)
from baseload.policy.plan.spec import Levels, Traffic

TRAFFIC = Traffic(requests_per_s=10, prompt_tokens=1000, output_tokens=200)
LEVELS = Levels(ttft_ms=1000, tpot_ms=40)


@pytest.fixture(scope="module")
def cost(predictor: Predictor) -> StepCost:
    return step_cost("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", weights="fp8", max_rows=0, predictor=predictor)


def test_more_load_is_slower_and_little_s_law_holds(cost: StepCost) -> None:
    curve = aggregated(cost, TRAFFIC, replace(LEVELS, tpot_of="mean"), step_tokens=2048)
    assert curve is not None
    for values in (curve.rate, curve.tpot_ms, curve.ttft_ms, curve.slots):
        assert np.all(np.diff(values) > -1e-9)
    in_flight = curve.rate * TRAFFIC.output_tokens * curve.tpot_ms / 1e3
    assert np.allclose(in_flight, curve.rows)


def test_the_best_load_is_the_most_within_the_levels(cost: StepCost) -> None:
    curve = aggregated(cost, TRAFFIC, LEVELS, step_tokens=2048)
    assert curve is not None
    best = best_point(curve, ttft_ms=1000, tpot_ms=40)
    assert best is not None
    assert best.ttft_ms <= 1000 * (1 + 1e-9)
    assert best.tpot_ms <= 40 * 1.0001
    over = point_at(curve, min(1.05 * best.rate, float(curve.rate[-1])))
    assert over.ttft_ms > 1000 or over.tpot_ms > 40 or best.binds in ("memory", "rows", "prompts")
    assert best_point(curve, ttft_ms=1e-3, tpot_ms=0) is None
    slower = best_point(curve, ttft_ms=1000, tpot_ms=40, slow=1.5)
    assert slower is not None
    assert slower.rate < best.rate


def test_a_calm_load_is_one_at_which_answers_hardly_wait(cost: StepCost) -> None:
    curve = aggregated(cost, TRAFFIC, LEVELS, step_tokens=2048)
    assert curve is not None
    calm = calm_point(curve, output_tokens=200, ttft_ms=1000, tpot_ms=40)
    most = best_point(curve, ttft_ms=1000, tpot_ms=40)
    assert calm is not None
    assert most is not None
    assert calm.rate < most.rate
    assert calm.ttft_ms + 200 * calm.tpot_ms <= 1.101 * float(curve.ttft_ms[0] + 200 * curve.tpot_ms[0])


def test_quantiles_are_above_means(cost: StepCost) -> None:
    mean = aggregated(cost, TRAFFIC, Levels(ttft_of="mean", tpot_of="mean"), step_tokens=2048)
    high = aggregated(cost, TRAFFIC, Levels(ttft_of="p99", tpot_of="p99"), step_tokens=2048)
    assert mean is not None
    assert high is not None
    assert np.all(high.ttft_ms > mean.ttft_ms)
    assert np.all(high.tpot_ms > mean.tpot_ms)


def test_pools_apart_disturb_nobody(cost: StepCost) -> None:
    together = aggregated(cost, TRAFFIC, LEVELS, step_tokens=2048)
    decode = decode_pool(cost, TRAFFIC, LEVELS)
    prefill = prefill_pool(cost, TRAFFIC, LEVELS, transfer_s=0.01)
    assert together is not None
    assert decode is not None
    assert prefill is not None
    rows = min(len(together.rows), len(decode.rows))
    assert np.all(decode.tpot_ms[:rows] < together.tpot_ms[:rows])
    assert prefill.ttft_ms[0] > 10.0
    assert unit_of(10.0, 10.0) == (1, 1)
    assert unit_of(30.0, 10.0) == (1, 3)


def test_idle_power_below_the_first_load(cost: StepCost) -> None:
    curve = aggregated(cost, TRAFFIC, LEVELS, step_tokens=2048)
    assert curve is not None
    assert point_at(curve, 0.0).watts == pytest.approx(cost.idle_w)
    assert cost.idle_w < point_at(curve, float(curve.rate[-1])).watts <= cost.busy_w


def test_what_does_not_fit_has_no_curve(predictor: Predictor) -> None:
    small = step_cost("meta-llama/Meta-Llama-3.1-70B", "l4", max_rows=0, predictor=predictor)
    assert aggregated(small, TRAFFIC, LEVELS, step_tokens=2048) is None
    assert decode_pool(small, TRAFFIC, LEVELS) is None
    assert prefill_pool(small, TRAFFIC, LEVELS, transfer_s=0.0) is None


def test_a_pipeline_trades_latency_for_room(predictor: Predictor) -> None:
    def of(pp: int) -> StepCost:
        return step_cost("meta-llama/Meta-Llama-3.1-70B", "h100_sxm", tp=8, pp=pp, max_rows=0, predictor=predictor)

    two = pipelined(of(2), of(1), 2)
    assert two.kv_tokens > 2 * of(1).kv_tokens
    assert two.decode_ns(64, 64_000) < of(1).decode_ns(64, 64_000)  # half the rows at a time
    assert two.decode_ns(1, 1000) > of(1).decode_ns(1, 500)  # but the hops are paid
    assert two.prefill_ns(2048) >= of(1).prefill_ns(2048)


def test_a_day_has_its_mean_and_its_peak() -> None:
    day = day_of(Traffic(requests_per_s=10, peak_requests_per_s=18, prompt_tokens=1, output_tokens=1))
    assert max(day) == 18
    assert math.isclose(sum(day) / len(day), 10, rel_tol=0.05)
    flat = Traffic(requests_per_s=10, peak_requests_per_s=18, diurnal=False, prompt_tokens=1, output_tokens=1)
    assert set(day_of(flat)) == {18}
