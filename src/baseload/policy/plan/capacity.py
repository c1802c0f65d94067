"""What one replica carries in tokens, for an autoscaler that follows work: prompts alone, and answers alone.

Near the planned mix of L prompt and T output tokens, a replica that carries r requests/s is taken to spend

    L / prompt_tokens_per_s + T / output_tokens_per_s = 1 / r

seconds a request. How 1/r falls when prompts (or answers) are half as long gives each share; both are then scaled so
that the sum is exact at the mix itself. Modelled, as r is.
"""

from msgspec.structs import replace

from baseload.policy.plan.candidates import unit_for
from baseload.policy.plan.options import Option, recurved
from baseload.policy.plan.spec import Levels, Traffic

LEAST_SHARE = 0.02  # of the time: a capacity that matters less is not told


def token_capacity(
    option: Option, traffic: Traffic, levels: Levels, *, network_ms: float = 0.0
) -> tuple[float, float]:
    """(prompt, output) tokens per second of one aggregated replica; 0 where it is not known or takes next to nothing.

    (0, 0) for disaggregated replicas, and where a replica cannot keep the levels at all.
    """
    if option.prefill is not None:
        return 0.0, 0.0
    whole = _seconds(option, traffic, levels, network_ms)
    if whole is None:
        return 0.0, 0.0
    shorter = _seconds(option, replace(traffic, prompt_tokens=max(1, traffic.prompt_tokens // 2)), levels, network_ms)
    fewer = _seconds(option, replace(traffic, output_tokens=max(1, traffic.output_tokens // 2)), levels, network_ms)
    of_prompts = 2.0 * max(0.0, whole - (shorter if shorter is not None else whole))
    of_answers = 2.0 * max(0.0, whole - (fewer if fewer is not None else whole))
    total = of_prompts + of_answers
    if total <= 0.0:
        return 0.0, 0.0
    prompt_share, answer_share = of_prompts / total, of_answers / total
    if answer_share < LEAST_SHARE:
        return traffic.prompt_tokens / whole, 0.0
    if prompt_share < LEAST_SHARE:
        prompt_share = LEAST_SHARE  # an autoscaler that follows tokens needs both
    return traffic.prompt_tokens / (prompt_share * whole), traffic.output_tokens / (answer_share * whole)


def _seconds(option: Option, traffic: Traffic, levels: Levels, network_ms: float) -> float | None:
    """Replica-seconds of a request at the greatest load within the levels; None where none is."""
    other = recurved(option, traffic, levels)
    if other is None:
        return None
    unit = unit_for(other, traffic, levels, network_ms=network_ms)
    return None if unit is None else 1.0 / unit.rate
