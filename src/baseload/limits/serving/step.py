"""Times from features and parameters: a step, and what a user of a closed loop then sees of it.

    step  = layers · launch + host + rows · row + max(read, math) of dense and of experts + cache + collectives
    TPOT  = decode step / pace + interference · batch / output · beside         (aggregated; disaggregated: without)
    TTFT  = first + prefill · (1 + aligned · concurrency) + waiting for cache room     (aggregated)

`beside` is what a prompt takes in steps that decode as well: most weights are read for both, and a step with prompts
in it replays no recorded graph. The maxima are smooth (a 3-norm). Aligned arrivals: in a closed loop with equal
lengths users finish, and so come back, together. Disaggregated, the prefill pool is a server that may saturate; where
many prompts wait it computes several in a step.
Every parameter is positive and kept as its logarithm, one row of them per point, so that a point may have its own.
"""

from dataclasses import dataclass

import numpy as np

from baseload.limits.serving.features import Features, Floats

PARAMETERS = (
    "launch_s",  # a layer's launches, seconds
    "host_s",  # a step's work on the host
    "row_s",  # a sequence's share of it
    "eager_s",  # what a layer's launches cost besides in a step with prompts, which replays no recorded graph
    "dense_read",  # efficiencies: fraction of the sheet's peak reached
    "dense_math",
    "expert_read",
    "expert_math",
    "alike",  # tokens of a step choose experts alike: so many count as their power of this
    "kv_read",
    "kv_math",
    "link",
    "message_s",  # a collective's latency inside the fast domain
    "outside",  # how many times that outside of it
    "prefill_dense",
    "prefill_expert",
    "prefill_pairs",
    "interference",
    "aligned",
    "first_s",
    "pace",  # tokens a step yields in a build of an engine: above 1 where it speculates (tables seldom say so)
    "pool",  # disaggregated: aligned arrivals at the prefill pool
)
KEPT_UP = 0.6  # of the time prefill accelerators are at work where their number suits the load
READ_BY_BOTH = 0.7  # of the weights a prompt needs: those that the step it is computed in reads for its decodes too
ALIKE_BY_LENGTH = 0.04  # less of `alike` for each doubling of the output over 1024 tokens: long texts come to repeat
TOGETHER = 16384.0  # tokens of prompts that a prefill worker computes in one step where many wait
CROWD = 0.5  # of the imbalance that routing at random has: engines place and copy experts against it
INDEX = {name: i for i, name in enumerate(PARAMETERS)}


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds per point."""

    tpot_s: Floats
    ttft_s: Floats
    decode_s: Floats
    prefill_s: Floats


def times_of(f: Features, theta: Floats) -> Times:
    """Times of all points; `theta` holds the logarithms of PARAMETERS, one row per point (or one for all)."""
    p = np.exp(np.broadcast_to(theta, (f.table.shape[0], len(PARAMETERS))))

    def at(name: str) -> Floats:
        return p[:, INDEX[name]]

    far, prefill_far = (
        np.where(f["outside"] > 0, at("outside"), 1.0),
        np.where(f["prefill_outside"] > 0, at("outside"), 1.0),
    )
    fixed = f["decode_layers"] * at("launch_s") + at("host_s")
    met_read = f["decode_expert_s"] * _met(f, "decode", at("alike")) / at("expert_read")
    prefill_met_read = f["prefill_expert_s"] * _met(f, "prefill", at("alike")) / at("expert_read")
    decode = (
        fixed
        + f["decode_rows"] * at("row_s")
        + _max(f["decode_dense_read"] / at("dense_read"), f["decode_dense_math"] / at("dense_math"))
        + _experts(f, "decode", met_read, at("expert_math"))
        + _max(f["decode_kv_read"] / at("kv_read"), f["decode_kv_math"] / at("kv_math"))
        + f["decode_messages"] * at("message_s") * far
        + f["decode_link"] / at("link")
    )
    eager = f["decode_layers"] * at("eager_s")
    prefill_dense_read = f["prefill_dense_read"] / at("dense_read")

    def prefill_of(together: Floats) -> Floats:
        """Of each of so many prompts computed together."""
        return (
            _max(prefill_dense_read / together, f["prefill_dense_math"] / at("prefill_dense"))
            + _experts(f, "prefill", prefill_met_read / together, at("prefill_expert"))
            + f["prefill_kv_math"] / at("prefill_pairs")
            + f["prefill_link"] / at("link")
        )

    prefill = prefill_of(np.ones(1))
    beside = prefill + eager - READ_BY_BOTH * (prefill_dense_read + np.minimum(met_read, prefill_met_read))
    once = eager + fixed + f["prefill_messages"] * at("message_s") * prefill_far
    alone = prefill + once
    apart = f["disagg"] > 0
    tpot = decode / at("pace") + np.where(apart, 0.0, at("interference") * f["batch"] / f["osl"] * beside)
    queue = at("aligned") * f["concurrency"] * prefill + f["waiting"] * f["osl"] * tpot
    together = np.clip(f["concurrency"] / f["prefill_workers"] / 4.0, 1.0, np.maximum(1.0, TOGETHER / f["isl"]))
    each = prefill_of(together) + once / together
    pool, answer = f["concurrency"] * each / f["prefill_workers"], f["osl"] * tpot
    stated = f["pool_known"] > 0  # else as many prefill as keep up with decoding
    pool = np.where(stated, pool, np.minimum(pool, KEPT_UP * answer))
    pooled = _max(at("pool") * pool, np.where(stated, np.maximum(0.0, pool - answer), 0.0))
    ttft = at("first_s") + alone + np.where(apart, pooled, queue)
    return Times(tpot, ttft, decode, prefill)


def _experts(f: Features, step: str, met_read: Floats, math: Floats) -> Floats:
    """Routed experts: those met are read by the rank that holds most of them, or the fullest rank multiplies."""
    top_k, tokens, ep = (f[f"{step}_{name}"] for name in ("top_k", "tokens", "ep"))
    fullest = 1.0 + CROWD * np.sqrt(2.0 * np.log(ep) * ep / (tokens * top_k))
    return _max(met_read, f[f"{step}_expert_math"] * fullest / math)


def _met(f: Features, step: str, alike: Floats) -> Floats:
    """Experts that tokens of a step go to, times ranks, on the rank that holds most of them."""
    experts, top_k, tokens, ep = (f[f"{step}_{name}"] for name in ("experts", "top_k", "tokens", "ep"))
    if step == "decode":
        alike = np.clip(alike - ALIKE_BY_LENGTH * np.log2(f["osl"] / 1024.0), 0.5, 1.0)
    covered = experts * (1.0 - (1.0 - np.minimum(top_k / experts, 0.999)) ** (tokens**alike))
    met: Floats = np.minimum(experts, covered + np.sqrt(2.0 * np.log(ep) * ep * covered * (1.0 - covered / experts)))
    return met


def _max(a: Floats, b: Floats) -> Floats:
    """A smooth maximum of two times."""
    high = np.maximum(np.maximum(a, b), 1e-30)
    low = np.minimum(a, b) / high
    result: Floats = high * np.cbrt(1.0 + low**3)
    return result
