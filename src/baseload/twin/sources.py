"""Sources of traffic: Poisson, Gamma, diurnal, bursts, sessions of several turns, agents, traces; and their mix.

Each source draws from its own stream of the seed, so that changing one leaves the others as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from baseload.domain.errors import SettingsError
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S, seconds
from baseload.twin.spec import Source, Workload
from baseload.twin.workload import Arrival, arrivals, choose, trace_rows, weights_of

Times = NDArray[np.float64]
MOST = 50_000_000  # arrivals of one source
DAY_S = 86_400.0


def all_arrivals(workload: Workload, *, models: Sequence[str], seed: int, base: Path | None = None) -> list[Arrival]:
    """All first arrivals in order of time: of the sources, or of the one stream where there are none."""
    if not workload.sources:
        return arrivals(workload, models=models, seed=seed, trace_base=base)
    made = [
        list(_of_source(source, workload, number, models, seed, base))
        for number, source in enumerate(workload.sources)
    ]
    return list(merge(*made, key=lambda arrival: arrival.at_ns))


def times_of(source: Source, random: Generator, *, where: str = "source") -> Times:
    """Seconds at which requests (or sessions) of a source begin, rising."""
    if not source.duration_s and not source.requests:
        raise SettingsError(f"{where}: `duration_s` or `requests` must be given.", hint="0 of both would never end.")
    if not source.rate_per_s > 0:
        raise SettingsError(f"{where}: `rate_per_s` must be above 0.")
    most = source.requests or MOST
    if source.duration_s and source.duration_s * source.rate_per_s > MOST:
        raise SettingsError(f"{where}: more than {MOST:,} requests.", hint="Ask for a shorter time or a lower rate.")
    end_s = source.duration_s or float("inf")
    match source.kind:
        case "gamma":
            shape = 1.0 / max(source.burstiness, 1e-3)
            times = _renewals(
                lambda n: random.gamma(shape, 1.0 / (shape * source.rate_per_s), n), source, most, end_s
            )
        case "diurnal":
            times = _thinned(source, random, most, end_s, _daily(source))
        case "bursts":
            times = _thinned(source, random, most, end_s, _bursty(source, random, end_s))
        case _:
            times = _renewals(lambda n: random.exponential(1.0 / source.rate_per_s, n), source, most, end_s)
    if source.burst > 1 and source.kind in ("poisson", "gamma", "diurnal"):
        times = np.repeat(times, random.integers(1, source.burst + 1, len(times)))[:most]
    return times + source.start_s


def _of_source(
    source: Source, workload: Workload, number: int, models: Sequence[str], seed: int, base: Path | None
) -> Iterator[Arrival]:
    where = f"workload.sources[{number}]"
    kinds = ("poisson", "gamma", "diurnal", "bursts", "sessions", "agents", "trace")
    if source.kind not in kinds:
        raise SettingsError(f"{where}: unknown kind {source.kind!r}.", hint=f"Known: {', '.join(kinds)}.")
    if source.model and source.model not in models:
        raise SettingsError(f"{where}: there is no model {source.model!r}.", hint=f"Known: {', '.join(models)}.")
    random = np.random.default_rng(Rng(seed, f"twin.source.{number}").u64())
    weights = weights_of(source.mix, models) if not source.model else []

    def model() -> str:
        return source.model or choose(models, weights, float(random.random()))

    def named(count: int) -> list[str]:
        if source.model:
            return [source.model] * count
        units = random.random(count).tolist()
        return [models[0]] * count if len(models) == 1 else [choose(models, weights, unit) for unit in units]

    if source.kind == "trace":
        path = base / source.trace if base is not None else Path(source.trace)
        speed, most = source.trace_speed, source.requests
        for row in trace_rows(path, speed=speed, most=most, columns=source.columns, models=models):
            if source.duration_s and row.at_ns > source.duration_s * NS_PER_S:
                return
            key, streams = int(random.integers(max(1, workload.keys))), bool(random.random() < source.stream)
            yield Arrival(
                row.at_ns + seconds(source.start_s), row.model or model(), key, row.input_tokens, row.output_tokens,
                2 * row.output_tokens, -1, 0, streams, blocks=row.blocks,
            )  # fmt: skip
        return
    times = times_of(source, random, where=where)
    if source.kind in ("sessions", "agents"):
        for thread, at_s in enumerate(times):
            yield _session(source, random, at_s, number * MOST + thread, model(), max(1, workload.keys))
        return
    yield from _singles(source, random, times, named, max(1, workload.keys))


def _singles(
    source: Source, random: Generator, times: Times, named: Callable[[int], list[str]], keys: int
) -> Iterator[Arrival]:
    """Requests that have nothing to do with each other, but for common prefixes; `named` draws so many models."""
    count = len(times)
    prompts = _lengths(source.prompt_tokens, source.spread, random, count)
    outputs = _lengths(source.output_tokens, source.spread, random, count)
    room = (outputs * (1.0 + random.random(count))).astype(np.int64)
    shares = random.random(count) < source.shared_prefix if source.prefixes > 0 else np.zeros(count, np.bool_)
    prefixes = np.where(shares, random.integers(0, max(1, source.prefixes), count), -1)
    streams, chosen_keys = random.random(count) < source.stream, random.integers(0, keys, count)
    columns = (times, chosen_keys, prompts, outputs, room, prefixes, streams)
    rows = zip(named(count), *(column.tolist() for column in columns), strict=True)
    for model, at_s, key, prompt, output, most, prefix, stream in rows:
        common = 0 if prefix < 0 else max(1, min(prompt - 1, source.prompt_tokens // 2))
        yield Arrival(round(at_s * NS_PER_S), model, key, prompt, output, most, prefix, common, stream)


def _session(source: Source, random: Generator, at_s: float, thread: int, model: str, keys: int) -> Arrival:
    """A conversation, or an agent's calls: each prompt holds all that was said, and begins as the one before."""
    turns = int(random.geometric(1.0 / max(1, source.turns)))
    said = _lengths(source.prompt_tokens, source.spread, random, turns)
    answers = _lengths(source.output_tokens, source.spread, random, turns)
    gaps = random.exponential(source.think_s, turns)
    key, context = int(random.integers(keys)), source.system_tokens
    prompts = []
    for question, answer in zip(said, answers, strict=True):
        prompts.append(context + int(question))
        context += int(question) + int(answer)
    then: Arrival | None = None
    streams = source.kind == "sessions"  # agents read whole answers
    for turn in range(turns - 1, -1, -1):
        after_ns = round((gaps[turn] if turn else at_s) * NS_PER_S)
        then = Arrival(
            after_ns, model, key, prompts[turn], int(answers[turn]), 2 * int(answers[turn]), 0 if source.system_tokens
            else -1, source.system_tokens, streams, thread, (), then,
        )  # fmt: skip
    assert then is not None
    return then


def _lengths(median: int, spread: float, random: Generator, count: int) -> NDArray[np.int64]:
    if spread <= 0:
        return np.full(count, max(1, median), np.int64)
    drawn = np.rint(median * np.exp(spread * random.standard_normal(count)))
    return np.asarray(np.maximum(1, drawn), np.int64)


def _renewals(gaps: Callable[[int], Times], source: Source, most: int, end_s: float) -> Times:
    parts: list[Times] = []
    at_s, made = 0.0, 0
    while made < most and at_s < end_s:
        wanted = min(most - made, int((min(end_s, 1e12) - at_s) * source.rate_per_s * 1.1) + 64, 1_000_000)
        part = at_s + np.cumsum(gaps(wanted))
        parts.append(part)
        at_s, made = float(part[-1]), made + wanted
    times = np.concatenate(parts) if parts else np.empty(0)
    return times[times < end_s][:most]


def _thinned(
    source: Source, random: Generator, most: int, end_s: float, shape: tuple[float, Callable[[Times], Times]]
) -> Times:
    """A Poisson process whose rate follows `shape`: (the most it reaches, share of that at a time); mean as asked."""
    peak, share = shape
    parts: list[Times] = []
    at_s, made = 0.0, 0
    while made < most and at_s < end_s:
        part = at_s + np.cumsum(random.exponential(1.0 / (source.rate_per_s * peak), 65_536))
        kept = part[random.random(len(part)) < share(part)]
        parts.append(kept)
        at_s, made = float(part[-1]), made + len(kept)
    times = np.concatenate(parts) if parts else np.empty(0)
    return times[times < end_s][:most]


def _daily(source: Source) -> tuple[float, Callable[[Times], Times]]:
    """A sine over the day, of mean 1, and less at weekends."""
    mean = (1.0 + source.trough) / 2.0

    def share(at_s: Times) -> Times:
        hour = (at_s + source.start_s) / 3600.0
        wave = mean + (1.0 - source.trough) / 2.0 * np.cos((hour - source.peak_hour) * np.pi / 12.0)
        is_weekend = ((at_s + source.start_s) // DAY_S) % 7 >= 5
        return wave * np.where(is_weekend, source.weekend, 1.0)

    return 1.0 / mean, share


def _bursty(source: Source, random: Generator, end_s: float) -> tuple[float, Callable[[Times], Times]]:
    """Quiet traffic with bursts of `burst` times the rate."""
    horizon_s = min(end_s, 1e7, 2.0 * (source.requests or MOST) / source.rate_per_s + 10 * source.burst_every_s)
    count = int(horizon_s / max(source.burst_every_s, 1e-3) * 1.5) + 8
    starts = np.cumsum(random.exponential(source.burst_every_s, count))
    height = float(max(1, source.burst))

    def share(at_s: Times) -> Times:
        last = np.searchsorted(starts, at_s, side="right") - 1
        inside = (last >= 0) & (at_s - starts[np.maximum(last, 0)] < source.burst_s)
        return np.where(inside, 1.0, 1.0 / height)

    return height, share
