"""Times from features and parameters: a step, and what a user of a closed loop then sees of it.

    step  = layers · launch + host + rows · row + max(read, math) of dense and of experts + cache + collectives
    TPOT  = decode step / pace + interference · batch / output · prefill         (aggregated; disaggregated: without)
    TTFT  = first + prefill · (1 + aligned · concurrency) + waiting for cache room     (aggregated)

The maxima are smooth (a 3-norm). Aligned arrivals: in a closed loop with equal lengths users finish, and so come
back, together. Disaggregated, the prefill pool is a server that may saturate.
Every parameter is positive and kept as its logarithm, one row of them per point, so that a point may have its own.
"""

from dataclasses import dataclass

import numpy as np

from baseload.limits.serving.features import Features, Floats

PARAMETERS = (
    "launch_s",  # a layer's launches, seconds
    "host_s",  # a step's work on the host
    "row_s",  # a sequence's share of it
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
KEPT_UP = 0.8  # of the time prefill accelerators are at work where their number suits the load
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
    decode = (
        fixed
        + f["decode_rows"] * at("row_s")
        + _max(f["decode_dense_read"] / at("dense_read"), f["decode_dense_math"] / at("dense_math"))
        + _experts(f, "decode", at("alike"), at("expert_read"), at("expert_math"))
        + _max(f["decode_kv_read"] / at("kv_read"), f["decode_kv_math"] / at("kv_math"))
        + f["decode_messages"] * at("message_s") * far
        + f["decode_link"] / at("link")
    )
    prefill = (
        _max(f["prefill_dense_read"] / at("dense_read"), f["prefill_dense_math"] / at("prefill_dense"))
        + _experts(f, "prefill", at("alike"), at("expert_read"), at("prefill_expert"))
        + f["prefill_kv_math"] / at("prefill_pairs")
        + f["prefill_link"] / at("link")
    )
    alone = prefill + fixed + f["prefill_messages"] * at("message_s") * prefill_far
    apart = f["disagg"] > 0
    tpot = decode / at("pace") + np.where(apart, 0.0, at("interference") * f["batch"] / f["osl"] * prefill)
    queue = at("aligned") * f["concurrency"] * prefill + f["waiting"] * f["osl"] * tpot
    pool, answer = f["concurrency"] * alone / f["prefill_workers"], f["osl"] * tpot
    stated = f["workers_known"] > 0  # else as many prefill as keep up with decoding
    pool = np.where(stated, pool, np.minimum(pool, KEPT_UP * answer))
    pooled = _max(at("pool") * pool, np.where(stated, np.maximum(0.0, pool - answer), 0.0))
    ttft = at("first_s") + alone + np.where(apart, pooled, queue)
    return Times(tpot, ttft, decode, prefill)


def _experts(f: Features, step: str, alike: Floats, read: Floats, math: Floats) -> Floats:
    """Routed experts: those met are read by the rank that holds most of them, or the fullest rank multiplies."""
    experts, top_k, tokens, ep = (f[f"{step}_{name}"] for name in ("experts", "top_k", "tokens", "ep"))
    covered = experts * (1.0 - (1.0 - np.minimum(top_k / experts, 0.999)) ** (tokens**alike))
    met = np.minimum(experts, covered + np.sqrt(2.0 * np.log(ep) * ep * covered * (1.0 - covered / experts)))
    fullest = 1.0 + CROWD * np.sqrt(2.0 * np.log(ep) * ep / (tokens * top_k))
    return _max(f[f"{step}_expert_s"] * met / read, f[f"{step}_expert_math"] * fullest / math)


def _max(a: Floats, b: Floats) -> Floats:
    """A smooth maximum of two times."""
    high = np.maximum(np.maximum(a, b), 1e-30)
    low = np.minimum(a, b) / high
    result: Floats = high * np.cbrt(1.0 + low**3)
    return result
