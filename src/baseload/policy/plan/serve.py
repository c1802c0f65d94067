"""What one replica serves: request rate against time to first token, time per token and power, from its step costs.

Aggregated, with b sequences decoding on average, L prompt tokens and T output tokens a request:

    tpot = decode(b + 1) + extra · b / T    each request's prompt takes `extra` of the replica's time from the others
    rate = b / (T · tpot)                   Little's law; who arrives meets b others, and is one more
    ttft = half a step + wait + extra + chunks · decode(b + 1)

`extra` is less where prompts meet in a step (`prompts`), and no part of it is lost: what one prompt takes, all others
wait for.

`wait` is that of an M/G/1 queue (Pollaczek and Khinchine) whose server is the prompt budget of the steps; its
quantiles fall off exponentially. The active sequences are taken as Poisson, prompt lengths as log-normal.
Disaggregated, prompts queue at workers of their own, and decoding is not disturbed by them.
A shared beginning of prompts is read from the cache, not computed; that it lies in memory once is left out (so the
room told is too small rather than too large). All of this is modelled; a twin run checks it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.limits.serving.replica import StepCost
from baseload.policy.plan.prompts import moments, prompt_cost
from baseload.policy.plan.spec import Levels, Statistic, Traffic

Floats = NDArray[np.float64]
Z: dict[Statistic, float] = {"mean": 0.0, "p90": 1.2816, "p95": 1.6449, "p99": 2.3263}
MOST_BUSY = 0.92  # a prompt queue fuller than this has waits that no formula tells
MOST_ROWS = 1024
SPARE_SLOTS = 3.0  # deviations above the mean for which batch slots are kept
_ROWS = (0.1, 0.4, *sorted({max(1, round(1.13**i)) for i in range(58)} | {MOST_ROWS}))
MEETINGS = 4  # rounds in which how many prompts meet in a step, and how long it then takes, settle


@dataclass(frozen=True, slots=True)
class Curve:
    """One replica at rising load. Arrays are parallel, `rate` rises; times are in the statistics of the levels."""

    rows: Floats  # decoding sequences, mean
    rate: Floats  # requests per second
    ttft_ms: Floats
    tpot_ms: Floats
    watts: Floats  # of the accelerators
    slots: Floats  # decoding sequences to allow for
    step_tokens: int  # token budget of a step
    ends: str  # why it goes no further: "memory", "rows" or "prompts"
    idle_w: float


@dataclass(frozen=True, slots=True)
class Point:
    """A replica at one load."""

    rate: float
    rows: float
    ttft_ms: float
    tpot_ms: float
    watts: float
    slots: int
    binds: str  # what more load would break: "ttft", "tpot", "memory", "rows" or "prompts"


def aggregated(cost: StepCost, traffic: Traffic, levels: Levels, *, step_tokens: int) -> Curve | None:
    """The curve of a replica that does prompts and decoding in one batch; None where not one sequence fits."""
    rows, ends = _rows(cost, traffic)
    if rows is None:
        return None
    out, context = traffic.output_tokens, context_of(traffic)
    cached = cached_tokens(traffic)
    prompts = prompt_cost(
        cost, cached=cached, fresh=traffic.prompt_tokens - cached, cv=traffic.prompt_cv,
        long=_stretch(traffic.prompt_cv, levels.ttft_of), context=context, step_tokens=step_tokens,
        most_rows=float(rows[-1]),
    )  # fmt: skip
    decode = _decode_s(cost, rows + 1.0, context)  # an arriving sequence meets the mean, and is one more
    ones = np.ones_like(rows)
    alone, chunks = prompts.at(rows, ones)
    extra, together = alone, ones
    for _ in range(MEETINGS):
        tpot = decode + extra * rows / out
        rate = rows / (out * tpot)
        meet = rate * (decode + together * extra)
        together = np.clip(meet / -np.expm1(-np.maximum(meet, 1e-9)), 1.0, prompts.together[-1])
        extra, _ = prompts.at(rows, together)
    tpot = decode + extra * rows / out
    rate = rows / (out * tpot)
    full, least = prompts.at(rows, ones * prompts.together[-1])
    served = full + least * decode  # of the prompt channel, by one prompt
    wait, wait_high = _wait(rate, served, prompts.spread, levels.ttft_of)
    own, (long_s, long_steps) = alone + chunks * decode, prompts.long(rows)
    long_own = long_s + long_steps * decode
    ttft = tpot / 2 + own + wait + np.hypot(wait_high - wait, np.maximum(0.0, long_own - own))
    crowd = rows + Z[levels.tpot_of] * np.sqrt(rows)
    tpot_high = _decode_s(cost, crowd + 1.0, context) + extra * crowd / out
    busy: Floats = np.minimum(1.0, rate * extra)
    watts = busy * cost.busy_w + (1.0 - busy) * _decode_w(cost, rows)
    ok = (rate * served < MOST_BUSY) & (rows < MOST_BUSY * step_tokens)
    return _curve(ok, rows, rate, ttft, tpot_high, watts, step_tokens, ends, cost.idle_w)


def decode_pool(cost: StepCost, traffic: Traffic, levels: Levels) -> Curve | None:
    """A worker that only decodes: no prompt disturbs it. `ttft_ms` is one step."""
    rows, ends = _rows(cost, traffic)
    if rows is None:
        return None
    context = context_of(traffic)
    decode = _decode_s(cost, rows + 1.0, context)
    crowd = rows + Z[levels.tpot_of] * np.sqrt(rows)
    watts = _decode_w(cost, rows)
    rate = rows / (traffic.output_tokens * decode)
    return _curve(rows > 0, rows, rate, decode, _decode_s(cost, crowd + 1.0, context), watts, 0, ends, cost.idle_w)


def prefill_pool(cost: StepCost, traffic: Traffic, levels: Levels, *, transfer_s: float) -> Curve | None:
    """A worker that only reads prompts, one at a time, and sends their cache on. `tpot_ms` is 0."""
    if not cost.fits or cost.kv_tokens < traffic.prompt_tokens * _stretch(traffic.prompt_cv, "p99"):
        return None
    cached = cached_tokens(traffic)
    fresh = traffic.prompt_tokens - cached

    def seconds_of(tokens: float) -> float:
        return cost.prefill_ns(max(1, round(tokens)), cached) / 1e9

    own, spread = moments(seconds_of, fresh, traffic.prompt_cv)
    busy = np.array([0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9])
    rate = busy / own
    wait, wait_high = _wait(rate, np.full_like(rate, own), spread, levels.ttft_of)
    long_own = seconds_of(fresh * _stretch(traffic.prompt_cv, levels.ttft_of))
    ttft = own + transfer_s + wait + np.hypot(wait_high - wait, max(0.0, long_own - own))
    watts = busy * cost.busy_w + (1.0 - busy) * cost.idle_w
    none = np.zeros_like(rate)
    return _curve(busy > 0, busy, rate, ttft, none, watts, traffic.prompt_tokens, "prompts", cost.idle_w)


def best_point(curve: Curve, *, ttft_ms: float, tpot_ms: float, slow: float = 1.0) -> Point | None:
    """The greatest load within the levels (0: none); `slow` stretches all times. None where even the least breaks."""
    last, broke = 0, curve.ends
    ttft, tpot, rate = curve.ttft_ms * slow, curve.tpot_ms * slow, curve.rate / slow
    for i in range(len(rate)):
        if ttft_ms and ttft[i] > ttft_ms:
            broke = "ttft"
        elif tpot_ms and tpot[i] > tpot_ms:
            broke = "tpot"
        else:
            last = i + 1
            continue
        break
    if last == 0:
        return None
    load = float(rate[last - 1])
    if last < len(rate) and broke in ("ttft", "tpot"):
        share = 1.0
        for times, level in ((ttft, ttft_ms), (tpot, tpot_ms)):
            rise = float(times[last] - times[last - 1])
            if level and rise > 0:
                share = min(share, (level - float(times[last - 1])) / rise)
        load += max(0.0, share) * float(rate[last] - rate[last - 1])
    return point_at(curve, load, slow=slow, binds=broke)


def point_at(curve: Curve, rate: float, *, slow: float = 1.0, binds: str = "") -> Point:
    """The replica at a given load (at most the curve's)."""
    at = rate * slow  # on the curve, whose times are not stretched
    high = min(max(1, int(np.searchsorted(curve.rate, at))), len(curve.rate) - 1)
    low = max(0, high - 1)
    start, end = float(curve.rate[low]), float(curve.rate[high])
    part = min(1.0, max(0.0, (at - start) / (end - start))) if end > start else 0.0

    def read(values: Floats) -> float:
        return float(values[low]) * (1.0 - part) + float(values[high]) * part

    share = min(1.0, at / float(curve.rate[0])) if curve.rate[0] > 0 else 1.0  # below the first point: idle between
    return Point(
        rate=rate,
        rows=read(curve.rows),
        ttft_ms=read(curve.ttft_ms) * slow,
        tpot_ms=read(curve.tpot_ms) * slow,
        watts=curve.idle_w + share * (read(curve.watts) - curve.idle_w),
        slots=max(1, math.ceil(read(curve.slots))),
        binds=binds,
    )


def calm_point(
    curve: Curve, *, output_tokens: int, ttft_ms: float, tpot_ms: float, slow: float = 1.0
) -> Point | None:
    """The greatest load at which an answer takes at most a tenth longer than alone, within the levels."""
    whole = curve.ttft_ms + output_tokens * curve.tpot_ms
    calm = int(np.searchsorted(np.maximum.accumulate(whole), 1.1 * whole[0], side="right"))
    most = best_point(curve, ttft_ms=ttft_ms, tpot_ms=tpot_ms, slow=slow)
    if most is None:
        return None
    rate = min(most.rate, float(curve.rate[max(0, calm - 1)]) / slow)
    return point_at(curve, rate, slow=slow, binds=most.binds if rate == most.rate else "latency")


def _rows(cost: StepCost, traffic: Traffic) -> tuple[Floats | None, str]:
    """Loads for which the cache has room, with deviations to spare."""
    if not cost.fits:
        return None, "memory"
    room = cost.kv_tokens / context_of(traffic)
    long = cost.kv_tokens / (traffic.prompt_tokens * _stretch(traffic.prompt_cv, "p99") + traffic.output_tokens)
    if long < 1:
        return None, "memory"
    kept = [r for r in _ROWS if r + SPARE_SLOTS * math.sqrt(r) <= room or r <= 1]
    return np.array(kept, dtype=np.float64), "rows" if kept[-1] == MOST_ROWS else "memory"


def _decode_s(cost: StepCost, rows: Floats, context: float) -> Floats:
    """Seconds of a decode step, straight between whole rows."""
    found = []
    for row in rows:
        low = int(row)
        at = cost.decode_ns(max(1, low), int(low * context))
        if row > low:
            above = cost.decode_ns(low + 1, int((low + 1) * context))
            at = round(at + (row - low) * (above - at))
        found.append(at / 1e9)
    return np.array(found)


def _decode_w(cost: StepCost, rows: Floats) -> Floats:
    """Watts while so many sequences decode, on average; below one it is idle in between."""
    return np.array([cost.idle_w + min(1.0, r) * (cost.decode_w(max(1, int(r))) - cost.idle_w) for r in rows])


def context_of(traffic: Traffic) -> float:
    """KV positions of a sequence that decodes, at a moment: long answers are met more often than short ones."""
    return traffic.prompt_tokens + traffic.output_tokens / 2.0 * (1.0 + traffic.output_cv**2)


def cached_tokens(traffic: Traffic) -> int:
    """Tokens of a mean prompt that the prefix cache has; at least one is computed."""
    return min(round(traffic.shared_prefix * traffic.prompt_tokens), traffic.prompt_tokens - 1)


def _wait(rate: Floats, served: Floats, spread: float, of: Statistic) -> tuple[Floats, Floats]:
    """Mean and quantile of an M/G/1 wait, `spread` the service's squared deviation over its mean; huge where the
    server is hardly enough."""
    busy = rate * served
    safe = np.minimum(busy, 0.999)
    scale = served * (1.0 + spread) / 2.0 / (1.0 - safe)
    mean = safe * scale
    if of == "mean":
        return mean, mean
    tail = 1.0 - {"p90": 0.90, "p95": 0.95, "p99": 0.99}[of]
    return mean, np.maximum(mean, scale * np.log(np.maximum(1.0, safe / tail)))


def _stretch(cv: float, of: Statistic) -> float:
    """How many times the mean a log-normal's quantile is."""
    if of == "mean" or cv <= 0:
        return 1.0
    sigma = math.sqrt(math.log1p(cv * cv))
    return math.exp(Z[of] * sigma - sigma * sigma / 2.0)


def _curve(
    ok: NDArray[np.bool_], rows: Floats, rate: Floats, ttft: Floats, tpot: Floats, watts: Floats, step_tokens: int,
    ends: str, idle_w: float,
) -> Curve | None:  # fmt: skip
    stop = len(ok) if bool(ok.all()) else int(np.argmin(ok))
    if stop == 0:
        return None
    kept = slice(0, stop)
    slots = rows + SPARE_SLOTS * np.sqrt(rows)
    return Curve(
        rows[kept], rate[kept], 1e3 * ttft[kept], 1e3 * tpot[kept], watts[kept], slots[kept], step_tokens,
        ends if stop == len(ok) else "prompts", idle_w,
    )  # fmt: skip


def unit_of(prefill_rate: float, decode_rate: float, *, most: int = 8) -> tuple[int, int]:
    """Prefill and decode workers of one disaggregated unit: small numbers whose capacities match best."""
    best, waste = (1, 1), math.inf
    for p in range(1, most + 1):
        for d in range(1, most + 1):
            spare = abs(p * prefill_rate - d * decode_rate) / max(p * prefill_rate, d * decode_rate)
            if spare + 0.01 * (p + d) < waste:
                best, waste = (p, d), spare + 0.01 * (p + d)
    return best


def day_of(traffic: Traffic, *, hours: int = 24) -> Sequence[float]:
    """Requests per second through the day: a wave with the traffic's mean and peak, or the peak all day."""
    peak = traffic.peak_requests_per_s or traffic.requests_per_s
    if traffic.hours and hours == len(traffic.hours):
        return traffic.hours
    swing = min(peak - traffic.requests_per_s, traffic.requests_per_s)
    if not traffic.diurnal:
        return [peak] * hours
    wave = [traffic.requests_per_s + swing * math.sin(math.tau * h / hours) for h in range(hours)]
    wave[hours // 4] = peak
    return wave
