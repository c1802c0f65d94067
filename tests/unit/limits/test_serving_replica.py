"""Step costs of a replica: affine, growing with work, and none without figures."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.replica import FS_PER_NS, StepCost, step_cost

PREDICTOR = Predictor()
MODELS = ("meta-llama/Llama-3.1-8B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3.5-397B-A17B")


def cost(model: str, accelerator: str = "h200", *, tp: int = 8, ep: int = 1) -> StepCost:
    return step_cost(model, accelerator, tp=tp, ep=ep, predictor=PREDICTOR)


COSTS = [cost(model) for model in MODELS]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(COSTS), st.integers(1, 700), st.integers(0, 5_000_000), st.integers(1, 1000))
def test_decode_is_affine_in_context(c: StepCost, rows: int, context: int, steps: int) -> None:
    fixed, slope = c.decode_line(rows)
    assert c.decode_ns(rows, context) == (fixed + slope * context) // FS_PER_NS
    exact = sum(fixed + slope * (context + rows * k) for k in range(steps))
    assert exact == steps * fixed + slope * (steps * context + rows * steps * (steps - 1) // 2)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(COSTS), st.integers(1, 600), st.integers(1, 8192), st.integers(0, 100_000))
def test_more_work_never_takes_less_time(c: StepCost, rows: int, tokens: int, context: int) -> None:
    assert c.decode_ns(rows + 1, context) >= c.decode_ns(rows, context) > 0
    assert c.decode_ns(rows, context + 1000) >= c.decode_ns(rows, context)
    assert c.prefill_ns(tokens, context + 1000) >= c.prefill_ns(tokens, context)
    alone = c.prefill_ns(tokens)
    beside = c.mixed_ns(tokens=tokens, pairs=tokens * tokens // 2, rows=rows, context_tokens=context)
    # Where steps yield more than a token each (`pace`), launches beside decodes count for less than alone.
    assert beside >= max(alone / max(1.0, c.parts.p["pace"]), c.decode_ns(rows, context) // 2)


def test_without_prompt_tokens_a_mixed_step_is_a_decode() -> None:
    c = COSTS[0]
    assert c.mixed_ns(tokens=0, pairs=0, rows=7, context_tokens=900) == c.decode_ns(7, 900)


def test_figures_of_the_sheet_bound_a_step() -> None:
    c = step_cost("meta-llama/Llama-3.1-8B", "h200", predictor=PREDICTOR)
    weights_s = 15e9 / 4.8e12
    assert c.decode_ns(1, 0) > 1e9 * weights_s
    assert 1_000_000 > c.kv_tokens > 700_000  # (141 GB · 0.92 − 16 GB) / 131 kB
    assert 0 < c.idle_w < c.decode_w(1) < c.decode_w(100) < c.busy_w <= 700


def test_more_accelerators_hold_more() -> None:
    small, large = cost("meta-llama/Llama-3.1-70B", tp=2), cost("meta-llama/Llama-3.1-70B", tp=8)
    assert large.kv_tokens > 3 * small.kv_tokens
    assert large.accelerators == 8
    assert not cost("deepseek-ai/DeepSeek-R1", tp=1).fits


def test_a_missing_figure_is_named() -> None:
    with pytest.raises(DataError, match="memory_gb_per_s"):
        step_cost("meta-llama/Llama-3.1-8B", Accelerator(name="x", source="y", bf16_tflops=1), predictor=PREDICTOR)
    with pytest.raises(DataError, match="No accelerator 'abacus'"):
        step_cost("meta-llama/Llama-3.1-8B", "abacus", predictor=PREDICTOR)
    with pytest.raises(DataError, match="at least 1"):
        step_cost("meta-llama/Llama-3.1-8B", "h200", tp=0, predictor=PREDICTOR)
