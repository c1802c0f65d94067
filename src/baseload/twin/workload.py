"""Arrivals: one stream, Poisson or a trace. Several sources together are in `sources`."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.domain.rng import Rng
from baseload.twin.chance import exponential_ns
from baseload.twin.spec import Workload
from baseload.twin.traces import HASHED_TOKENS, TraceRow, read_trace


class Arrival(Struct, frozen=True):
    """One client who asks. `output_tokens` is where its answer will end by itself."""

    at_ns: int  # since the first instant of the simulation; of a later turn: since the answer before it
    model: str
    key: int  # number of the key
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    prefix: int  # number of the shared prefix it begins with; -1: none
    prefix_tokens: int
    stream: bool
    thread: int = -1  # number of the conversation, whose prompts begin alike; -1: none
    blocks: tuple[int, ...] = ()  # of a trace: hashes of the prompt, 512 tokens each
    then: "Arrival | None" = None  # what the same client asks next, once this is answered


def arrivals(
    workload: Workload, *, models: Sequence[str], seed: int, trace_base: Path | None = None
) -> list[Arrival]:
    """All arrivals in order of time. A relative trace path starts at `trace_base` (the spec's folder), if given."""
    if not models:
        raise DataError("There is no model to ask for.", hint="Add [[models]] to the specification.")
    rng = Rng(seed, "twin.workload")
    rows = _rows(workload, rng, trace_base, models)
    weights = weights_of(workload.mix, models)
    return [_arrival(row, workload, rng, models, weights) for row in rows]


def weights_of(mix: dict[str, float], models: Sequence[str]) -> list[float]:
    """How much of the traffic each model gets; an empty mix is even."""
    weights = [max(0.0, mix.get(name, 0.0 if mix else 1.0)) for name in models]
    if sum(weights) <= 0:
        raise DataError("The mix names none of the models.", hint=f"Known models: {', '.join(models)}.")
    return weights


def choose(models: Sequence[str], weights: Sequence[float], unit: float) -> str:
    """The model that `unit` in [0, 1) falls on."""
    left = unit * sum(weights)
    for name, weight in zip(models, weights, strict=True):
        left -= weight
        if left < 0:
            return name
    return models[-1]


def trace_rows(
    path: Path, *, speed: float, most: int, columns: dict[str, str], models: Sequence[str]
) -> Iterator[TraceRow]:
    """The first `most` (0: all) rows, `speed` times as fast.

    Where none of the models a trace names is served, its names mean nothing here and are left out.
    """
    if not speed > 0:
        raise DataError("trace_speed must be above 0.")
    rows = read_trace(path, columns=columns)[: most or None]
    is_ours = any(row.model in models for row in rows)
    for row in rows:
        model = row.model if is_ours else ""
        yield TraceRow(round(row.at_ns / speed), row.input_tokens, row.output_tokens, model, row.blocks)


def _rows(workload: Workload, rng: Rng, base: Path | None, models: Sequence[str]) -> Iterator[TraceRow]:
    if workload.trace:
        path = base / workload.trace if base is not None else Path(workload.trace)
        speed, most = workload.trace_speed, workload.requests
        yield from trace_rows(path, speed=speed, most=most, columns=workload.columns, models=models)
        return
    if not workload.rate_per_s > 0:
        raise DataError("rate_per_s must be above 0.")
    at_ns = more = 0
    for _ in range(workload.requests):
        if more == 0:
            at_ns += exponential_ns(rng, 1.0 / workload.rate_per_s)
            more = 1 + (rng.below(workload.burst) if workload.burst > 1 else 0)
        more -= 1
        prompt = _length(workload.prompt_tokens, workload.spread, rng)
        yield TraceRow(at_ns, prompt, _length(workload.output_tokens, workload.spread, rng))


def _length(median: int, spread: float, rng: Rng) -> int:
    if spread <= 0:
        return max(1, median)
    normal = math.sqrt(-2.0 * math.log(1.0 - rng.unit())) * math.cos(math.tau * rng.unit())
    return max(1, round(median * math.exp(spread * normal)))


def _arrival(row: TraceRow, workload: Workload, rng: Rng, models: Sequence[str], weights: Sequence[float]) -> Arrival:
    prefix = rng.below(workload.prefixes) if workload.prefixes > 0 and rng.unit() < workload.shared_prefix else -1
    return Arrival(
        at_ns=row.at_ns,
        model=row.model or choose(models, weights, rng.unit()),
        key=rng.below(max(1, workload.keys)),
        prompt_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        max_tokens=row.output_tokens + rng.below(row.output_tokens + 1),
        prefix=prefix,
        prefix_tokens=0 if prefix < 0 else max(1, min(row.input_tokens - 1, workload.prompt_tokens // 2)),
        stream=rng.unit() < workload.stream,
        blocks=row.blocks[: row.input_tokens // HASHED_TOKENS + 1],
    )
