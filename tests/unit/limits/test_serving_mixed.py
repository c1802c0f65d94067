"""A mixed step of a replica and the formula of closed loops are one form, with the same seconds."""

import numpy as np
import pytest

from baseload.limits.serving.features import features_of, workers_of
from baseload.limits.serving.mixed import Load
from baseload.limits.serving.points import Layout, Point
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.replica import StepCost, step_cost
from baseload.limits.serving.step import INDEX, Times, times_of
from baseload.limits.serving.traits import traits_of

PREDICTOR = Predictor()
WAYS = (
    ("meta-llama/Llama-3.1-8B", Layout(gpus=1)),
    ("meta-llama/Llama-3.1-70B", Layout(gpus=4)),
    ("Qwen/Qwen3-30B-A3B", Layout(gpus=1)),
    ("openai/gpt-oss-120b", Layout(gpus=2)),
    ("deepseek-ai/DeepSeek-R1", Layout(gpus=8, ep=8)),
    ("deepseek-ai/DeepSeek-R1", Layout(gpus=8, ep=8, dp=8)),
    ("Qwen/Qwen3.5-397B-A17B", Layout(gpus=8, ep=8)),
    ("meta-llama/Llama-3.1-8B", Layout(gpus=4, cp=4)),
    ("meta-llama/Llama-3.1-70B", Layout(gpus=8, cp=2)),
)
LENGTHS = ((100, 100, 4), (2000, 200, 32), (8000, 1000, 16), (1000, 1000, 100))


def both(model: str, layout: Layout, system: str, lengths: tuple[int, int, int]) -> tuple[Times, StepCost, float]:
    """The formula's times of a closed loop, the replica's step cost, and the `pace`."""
    isl, osl, users = lengths
    point = Point(
        line=0, id="", engine="vllm", version="", model=model, system=system, dense_format="", expert_format="",
        isl=isl, osl=osl, concurrency=float(users * workers_of_one(layout)), decode=layout,
    )  # fmt: skip
    shape = PREDICTOR.models.find(model)[0]
    features = features_of([point], PREDICTOR.chips, PREDICTOR.models)
    assert features["batch"][0] == users, "the grid has room for all users"
    theta = PREDICTOR.fitted.theta([traits_of(point, shape)])
    cost = step_cost(
        shape, system, tp=layout.gpus // layout.dp // layout.cp, dp=layout.dp, ep=layout.ep, cp=layout.cp,
        output_tokens=osl, max_rows=0, predictor=PREDICTOR,
    )  # fmt: skip
    return times_of(features, theta, rounds=1), cost, float(np.exp(theta[0, INDEX["pace"]]))


def workers_of_one(layout: Layout) -> float:
    return workers_of(Point(
        line=0, id="", engine="vllm", version="", model="", system="", dense_format="", expert_format="", isl=1,
        osl=1, concurrency=1.0, decode=layout,
    ))  # fmt: skip


@pytest.mark.parametrize("system", ["h200_sxm", "b200_sxm", "mi300x"])
@pytest.mark.parametrize(("model", "layout"), WAYS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_formula_and_replica_say_the_same_of_a_step(
    model: str, layout: Layout, system: str, lengths: tuple[int, int, int]
) -> None:
    times, cost, pace = both(model, layout, system, lengths)
    isl, osl, users = lengths
    context = int(users * (isl + osl / 2))
    decode_s = cost.decode_ns(users, context) / 1e9
    # Windows that are not full yet, and hybrids whose states and caches share a maximum, differ by a little.
    assert decode_s == pytest.approx(times.decode_s[0] / pace, rel=0.01)
    mixed_ns = cost.mixed_ns(tokens=isl, pairs=isl * isl // 2, rows=users, context_tokens=context)
    # A mixed step is never shorter than its prompts alone, which the formula does not ask.
    assert mixed_ns / 1e9 - decode_s == pytest.approx(times.beside_s[0], rel=0.02)


def test_prompts_in_one_step_read_weights_once() -> None:
    _, cost, _ = both("meta-llama/Llama-3.1-70B", Layout(gpus=4), "h200_sxm", (100, 100, 4))
    alone, decode = cost.prefill_ns(64), cost.decode_ns(8, 8000)
    beside = cost.mixed_ns(tokens=64, pairs=64 * 32, rows=8, context_tokens=8000)
    together = cost.mixed_ns(tokens=128, pairs=2 * 64 * 32, rows=8, context_tokens=8000, prompts=2)
    assert max(alone, decode) < beside < alone + decode
    assert beside < together < 2 * beside - decode


def test_ranks_of_attention_wait_for_the_fullest() -> None:
    _, cost, _ = both("deepseek-ai/DeepSeek-R1", Layout(gpus=8, ep=8, dp=8), "h200_sxm", (100, 100, 4))
    busy, idle = Load(512, 512 * 256, 8, 8000, 1), Load(0, 0, 0, 0, 0)
    even = cost.together_ns([Load(64, 64 * 256, 1, 1000, 1)] * 8)
    assert cost.together_ns([busy, *[idle] * 7]) > 1.5 * even
    assert cost.together_ns([idle] * 8) == 1


def test_context_parallel_shortens_long_prompts_and_spreads_the_cache() -> None:
    one = step_cost("meta-llama/Llama-3.1-8B", "h200_sxm", predictor=PREDICTOR)
    four = step_cost("meta-llama/Llama-3.1-8B", "h200_sxm", cp=4, predictor=PREDICTOR)
    assert four.accelerators == 4
    assert 2.5 < one.prefill_ns(100_000) / four.prefill_ns(100_000) < 4.0
    assert 3.9 < four.kv_tokens / one.kv_tokens < 4.1  # weights are whole in each
    assert four.decode_ns(1, 200_000) < 0.7 * one.decode_ns(1, 200_000)
    assert four.decode_ns(1, 100) > 0.98 * one.decode_ns(1, 100)  # weights are read by each
