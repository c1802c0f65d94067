"""A step of one replica, alone or mixed, in the form `step` was fitted in: what the twin steps, and planners plan by.

    decode   launches + host + rows · row + max(read, math) of dense and of experts + cache + collectives, over `pace`
    beside   what prompts add to a step that decodes: their own products, attention and links, launches one by one (it
             replays no recorded graph), less what of the weights is read for both
    mixed    decode + beside; without decoding rows: the prompts and what any step costs

`step` says the same of a table of closed loops; a test holds both to the same seconds. Scalars here, no arrays: the
twin asks a million times. Context parallel: a rank has its share of a prompt's tokens, and of the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cbrt, log, log2, sqrt

from baseload.limits.serving.features import Counts
from baseload.limits.serving.step import ALIKE_BY_LENGTH, CROWD, READ_BY_BOTH, UNEVEN

FS = 1e15  # femtoseconds in a second
USUAL_OUTPUT = 1024.0  # tokens of an answer: there `alike` is what it says


@dataclass(frozen=True, slots=True)
class Load:
    """What one replica of attention does in a step."""

    tokens: int  # of prompts
    pairs: int  # of such a token and an earlier position
    rows: int  # that decode
    context_tokens: int  # KV positions they read
    prompts: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What was counted, the efficiencies reached, and tokens of an answer, which decide how alike texts are."""

    counts: Counts
    p: dict[str, float]
    output_tokens: float = USUAL_OUTPUT
    fixed_s: float = field(init=False)  # what any step costs: launches, host, the collectives' latency
    _read_s: float = field(init=False)  # all dense weights
    _position_s: float = field(init=False)  # of a KV position that is read
    _row_s: float = field(init=False)  # a decoding row's own: host, windows (held to be full), states, links
    _both: float = field(init=False)  # of weights needed twice: read for prompts and decodes at once
    _alike: float = field(init=False)  # of decoding rows: long texts come to repeat

    def __post_init__(self) -> None:
        p, c = self.p, self.counts
        whole = [a for a in c.attention if not a.window]
        position = _max(sum(a.read_s for a in whole) / p["kv_read"], sum(a.math_s for a in whole) / p["kv_math"])
        read = c.state_read_s + sum(a.read_s * a.window for a in c.attention)
        math = c.state_math_s + sum(a.math_s * a.window for a in c.attention)
        row = p["row_s"] / c.dp + _max(read / p["kv_read"], math / p["kv_math"])
        far = p["outside"] if c.outside else 1.0
        alike = p["alike"] - ALIKE_BY_LENGTH * log2(self.output_tokens / USUAL_OUTPUT)
        object.__setattr__(
            self, "fixed_s", c.layers * p["launch_s"] + p["host_s"] + c.messages * p["message_s"] * far
        )
        object.__setattr__(self, "_read_s", c.dense_read_s / p["dense_read"])
        object.__setattr__(self, "_position_s", position)
        object.__setattr__(self, "_row_s", row + (c.link_s + c.merge_s) / p["link"])
        object.__setattr__(self, "_both", READ_BY_BOTH / max(1.0, p["pace"]))
        object.__setattr__(self, "_alike", min(1.0, max(0.5, alike)))

    def line(self, rows: int) -> tuple[int, int]:
        """(fixed, slope) of a step that only decodes: femtoseconds, and femtoseconds per KV position."""
        if rows <= 0:
            return round(self.fixed_s * FS), 0
        fixed = self._dense_decode_s(rows, 0.0) + self._experts_decode_s(rows) / self.p["pace"]
        return round(fixed * FS), round(self._position_s / self.p["pace"] * FS)

    def mixed_s(self, tokens: float, pairs: float, rows: float, context: float, prompts: float) -> float:
        """Seconds of a step of `tokens` prompt tokens beside `rows` decodes; either may be 0."""
        eager = self._eager_s() if tokens else 0.0
        return self._dense_s(tokens, pairs, rows, context, prompts) + self._experts_s(tokens, rows) + eager

    def together_s(self, loads: Sequence[Load]) -> float:
        """Of replicas of attention, one load each, that meet at the experts: as slow as the fullest."""
        tokens, rows, n = sum(load.tokens for load in loads), sum(load.rows for load in loads), len(loads)
        if not tokens and not rows:
            return 0.0
        dense = max(
            self._dense_s(n * x.tokens, n * x.pairs, n * x.rows, n * x.context_tokens, n * x.prompts)
            for x in loads
            if x.tokens or x.rows
        )
        return dense + self._experts_s(tokens, rows) + (self._eager_s() if tokens else 0.0)

    def at_peak_s(self, rows: int, context: int) -> tuple[float, float]:
        """Seconds a decode step would read, and multiply, at the sheet's peaks."""
        c = self.counts
        read = c.dense_read_s + (c.experts.read_s * c.experts.covered(rows) if c.experts else 0.0)
        read += rows * c.state_read_s + sum(
            a.read_s * (min(context, rows * a.window) if a.window else context) for a in c.attention
        )
        return read, rows * (c.dense_math_s + (c.experts.math_s if c.experts else 0.0))

    def _eager_s(self) -> float:
        return self.counts.layers * self.p["eager_s"]

    def _dense_s(self, tokens: float, pairs: float, rows: float, context: float, prompts: float) -> float:
        """All but experts and eager launches."""
        if not tokens:
            return self._dense_decode_s(rows, context)
        alone = self._dense_prefill_s(tokens, pairs, prompts)
        if not rows:
            return self.fixed_s + alone
        shared = self._both * self._read_s
        least = self.fixed_s / max(1.0, self.p["pace"])
        return alone + max(least, self._dense_decode_s(rows, context) - shared)

    def _dense_decode_s(self, rows: float, context: float) -> float:
        p, c = self.p, self.counts
        products = _max(self._read_s, rows * (c.dense_math_s + c.head_math_s) / p["dense_math"])
        return (self.fixed_s + products + rows * self._row_s + context * self._position_s) / p["pace"]

    def _dense_prefill_s(self, tokens: float, pairs: float, prompts: float) -> float:
        p, c = self.p, self.counts
        tokens, pairs = tokens / c.cp, pairs / c.cp
        seen = tokens * c.state_math_s
        for a in c.attention:
            seen += a.pair_s * (min(pairs, tokens * a.window) if a.window else pairs)
        math = (tokens * c.dense_math_s + prompts * c.head_math_s) / p["prefill_dense"]
        links = tokens * (c.link_s + c.gather_s) / p["link"]
        return _max(self._read_s, math) + seen / p["prefill_pairs"] + links

    def _experts_s(self, tokens: float, rows: float) -> float:
        e, p = self.counts.experts, self.p
        if e is None:
            return 0.0
        if not tokens:
            return self._experts_decode_s(rows) / p["pace"]
        tokens /= self.counts.cp
        read = self._met_s(tokens ** p["alike"])
        alone = _max(read, e.math_s * tokens * self._fullest(tokens) / p["prefill_expert"])
        if not rows:
            return alone
        shared = self._both * min(read, self._met_s(rows**self._alike))
        return max(alone, self._experts_decode_s(rows) / p["pace"] + alone - shared)

    def _experts_decode_s(self, rows: float) -> float:
        e = self.counts.experts
        if e is None or not rows:
            return 0.0
        math = e.math_s * rows * self._fullest(rows) / self.p["expert_math"]
        return _max(self._met_s(rows**self._alike), math)

    def _met_s(self, drawn: float) -> float:
        """To read the experts that so many independent tokens go to, on the rank that holds most of them."""
        e, c = self.counts.experts, self.counts
        assert e is not None
        covered = e.covered(drawn)
        met = covered + UNEVEN * sqrt(2.0 * log(c.ep) * c.ep * covered * (1.0 - covered / e.experts))
        return e.read_s * e.slower * min(float(e.experts), met) / self.p["expert_read"]

    def _fullest(self, tokens: float) -> float:
        """How many times the mean the fullest rank multiplies."""
        e, c = self.counts.experts, self.counts
        assert e is not None
        return 1.0 + CROWD * sqrt(2.0 * log(c.ep) * c.ep / (tokens * e.top_k))


def _max(a: float, b: float) -> float:
    """The smooth maximum of `step`."""
    high, low = (a, b) if a >= b else (b, a)
    return high * cbrt(1.0 + (low / high) ** 3) if high > 0 else 0.0
