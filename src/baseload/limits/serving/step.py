"""Times from features and parameters: a step, and what a user of a closed loop then sees of it.

    step   = layers · launch + host + rows · row + max(read, math) of dense and of experts + cache + collectives
    TPOT   = decode step / pace + interference · (rows − 1) / output · beside     (aggregated; disaggregated: without)
    TTFT   = first + prefill · (1 + aligned · (concurrency − 1)) + waiting for cache room       (aggregated)
    rows   = 1 + (batch − 1) · share,   share = output · TPOT / (TTFT + output · TPOT)

`beside` is what a prompt takes in steps that decode as well: most weights are read for both, and a step with prompts
in it replays no recorded graph. The maxima are smooth (a 3-norm). Aligned arrivals: in a closed loop with equal
lengths users finish, and so come back, together. Who waits for a first token does not decode, so beside a user
`share` of the others do (Little's law), and as many prompts as answers are computed meanwhile: found by going round a
few times.
Disaggregated, the prefill pool is a server that may saturate; where many prompts wait it computes several in a step.
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
    "first_s",  # till the first token besides its prompt's steps, where several users are served: steps of theirs
    "pace",  # tokens a step yields in a build of an engine: above 1 where it speculates (tables seldom say so)
    "pool",  # disaggregated: aligned arrivals at the prefill pool
)
KEPT_UP = 0.6  # of the time prefill accelerators are at work where their number suits the load
READ_BY_BOTH = 0.7  # of the weights a prompt needs: those that the step it is computed in reads for its decodes too
ALIKE_BY_LENGTH = 0.04  # less of `alike` for each doubling of the output over 1024 tokens: long texts come to repeat
TOGETHER = 16384.0  # tokens of prompts that a prefill worker computes in one step where many wait
UNEVEN = 0.7  # of the imbalance that choice at random leaves between ranks, in experts to read: placed against it
CROWD = 0.5  # and in tokens to multiply: busy experts are copied too
MOST_READ = 0.92  # of the sheet's bandwidth reached at most, whatever corrections add up to
FIRST_ALONE_S, FEW = 0.01, 3.0  # of a lone user's first token instead; beside so many others it is `first_s` in full
ROUNDS = 4  # towards the share of users that decode: TPOT is then within 2e-5 (1 % at worst) of where it settles
INDEX = {name: i for i, name in enumerate(PARAMETERS)}


def bounded(theta: Floats) -> Floats:
    """Logarithms of PARAMETERS with no more of the bandwidth than memory gives."""
    high = np.full(len(PARAMETERS), np.inf)
    high[[INDEX["dense_read"], INDEX["expert_read"]]] = np.log(MOST_READ)
    result: Floats = np.minimum(theta, high)
    return result


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds per point."""

    tpot_s: Floats
    ttft_s: Floats
    decode_s: Floats  # of a step, with the rows that decode
    prefill_s: Floats
    beside_s: Floats  # what a prompt adds to steps that decode as well


def times_of(f: Features, theta: Floats, *, rounds: int = ROUNDS) -> Times:
    """Times of all points; `theta` holds the logarithms of PARAMETERS, one row per point (or one for all). With one
    round every user decodes."""
    step = _Steps(f, np.exp(np.broadcast_to(bounded(theta), (f.table.shape[0], len(PARAMETERS)))))
    prefill, users, apart = step.prefill_s(np.ones(1)), 1.0 + f["waiting"], f["disagg"] > 0
    busy = np.minimum(1.0, (f["concurrency"] - 1.0) / FEW)
    first = (1.0 - busy) * FIRST_ALONE_S + busy * step.at("first_s") + prefill + step.once_s()
    share = np.ones(f.table.shape[0])
    for left in range(rounds, 0, -1):
        others = share * np.maximum(0.0, f["batch"] - 1.0)
        decode, beside = step.decode_s((1.0 + others) / np.maximum(1.0, f["batch"]), prefill)
        felt = np.where(apart, 0.0, step.at("interference") * others / f["osl"] * beside)
        tpot = decode / step.at("pace") + felt
        answer = f["osl"] * tpot
        queue = step.at("aligned") * (f["concurrency"] - 1.0) * prefill + f["waiting"] * answer
        ttft = first + np.where(apart, step.pooled_s(answer), queue)
        if left > 1:
            share = np.minimum(1.0, users * answer / (ttft + answer))
    return Times(tpot, ttft, decode, prefill, beside)


class _Steps:
    """Seconds of steps, by what is in them."""

    def __init__(self, f: Features, p: Floats) -> None:
        self.f, self.p = f, p
        self.fixed = f["decode_layers"] * self.at("launch_s") + self.at("host_s")
        self.met = f["prefill_expert_s"] * _met(f, "prefill", self.at("alike"), f["prefill_tokens"])
        self.met /= self.at("expert_read")

    def at(self, name: str) -> Floats:
        return self.p[:, INDEX[name]]

    def decode_s(self, share: Floats, prefill: Floats) -> tuple[Floats, Floats]:
        """(a step in which `share` of the batch decodes, what a prompt adds to it)."""
        f, at = self.f, self.at
        tokens = f["decode_tokens"] * share
        met = f["decode_expert_s"] * _met(f, "decode", at("alike"), tokens) / at("expert_read")
        read = f["decode_dense_read"] / at("dense_read")
        decode = (
            self.fixed
            + f["decode_rows"] * share * at("row_s")
            + _max(read, f["decode_dense_math"] * share / at("dense_math"))
            + _experts(f, "decode", met, at("expert_math"), tokens)
            + share * _max(f["decode_kv_read"] / at("kv_read"), f["decode_kv_math"] / at("kv_math"))
            + f["decode_messages"] * at("message_s") * np.where(f["outside"] > 0, at("outside"), 1.0)
            + f["decode_link"] * share / at("link")
        )
        both = READ_BY_BOTH * (f["prefill_dense_read"] / at("dense_read") + np.minimum(met, self.met))
        return decode, prefill + f["decode_layers"] * at("eager_s") - both / np.maximum(1.0, at("pace"))

    def prefill_s(self, together: Floats) -> Floats:
        """Of each of so many prompts computed together, without what any step costs."""
        f, at = self.f, self.at
        return (
            _max(f["prefill_dense_read"] / at("dense_read") / together, f["prefill_dense_math"] / at("prefill_dense"))
            + _experts(f, "prefill", self.met / together, at("prefill_expert"), f["prefill_tokens"])
            + f["prefill_kv_math"] / at("prefill_pairs")
            + f["prefill_link"] / at("link")
        )

    def once_s(self) -> Floats:
        """What any step of prompts costs."""
        f, at = self.f, self.at
        far = np.where(f["prefill_outside"] > 0, at("outside"), 1.0)
        return f["decode_layers"] * at("eager_s") + self.fixed + f["prefill_messages"] * at("message_s") * far

    def pooled_s(self, answer: Floats) -> Floats:
        """How long a prompt waits for a prefill worker, where answers take so long."""
        f = self.f
        together = np.clip(f["concurrency"] / f["prefill_workers"] / 4.0, 1.0, np.maximum(1.0, TOGETHER / f["isl"]))
        each = self.prefill_s(together) + self.once_s() / together
        stated = f["pool_known"] > 0  # else as many prefill as keep up with decoding
        pool = f["concurrency"] * each / f["prefill_workers"]
        pool = np.where(stated, pool, np.minimum(pool, KEPT_UP * answer))
        result: Floats = _max(self.at("pool") * pool, np.where(stated, np.maximum(0.0, pool - answer), 0.0))
        return result


def _experts(f: Features, step: str, met_read: Floats, math: Floats, tokens: Floats) -> Floats:
    """Routed experts: those met are read by the rank that holds most of them, or the fullest rank multiplies."""
    top_k, ep = (f[f"{step}_{name}"] for name in ("top_k", "ep"))
    fullest = 1.0 + CROWD * np.sqrt(2.0 * np.log(ep) * ep / (tokens * top_k))
    return _max(met_read, f[f"{step}_expert_math"] * tokens / f[f"{step}_tokens"] * fullest / math)


def _met(f: Features, step: str, alike: Floats, tokens: Floats) -> Floats:
    """Experts that tokens of a step go to, times ranks, on the rank that holds most of them."""
    experts, top_k, ep = (f[f"{step}_{name}"] for name in ("experts", "top_k", "ep"))
    tokens = np.maximum(tokens, 1.0)
    if step == "decode":
        alike = np.clip(alike - ALIKE_BY_LENGTH * np.log2(f["osl"] / 1024.0), 0.5, 1.0)
    covered = experts * (1.0 - (1.0 - np.minimum(top_k / experts, 0.999)) ** (tokens**alike))
    spread = np.sqrt(2.0 * np.log(ep) * ep * covered * (1.0 - covered / experts))
    met: Floats = np.minimum(experts, covered + UNEVEN * spread)
    return met


def _max(a: Floats, b: Floats) -> Floats:
    """A smooth maximum of two times."""
    high = np.maximum(np.maximum(a, b), 1e-30)
    low = np.minimum(a, b) / high
    result: Floats = high * np.cbrt(1.0 + low**3)
    return result
