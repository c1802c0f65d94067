"""Arrivals: drawn (Poisson, log-normal lengths) or replayed from a CSV of arrivals and lengths."""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.twin.chance import exponential_ns
from baseload.twin.spec import Workload


class Arrival(Struct, frozen=True):
    """One client who asks. `output_tokens` is where its answer will end by itself."""

    at_ns: int  # since the first instant of the simulation
    model: str
    key: int  # number of the key
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    prefix: int  # number of the shared prefix it begins with; -1: none
    prefix_tokens: int
    stream: bool


class TraceRow(Struct, frozen=True):
    """One row of a trace. `model` is "" where the trace does not say."""

    at_ns: int
    input_tokens: int
    output_tokens: int
    model: str = ""


def arrivals(
    workload: Workload, *, models: Sequence[str], seed: int, trace_base: Path | None = None
) -> list[Arrival]:
    """All arrivals in order of time. A relative trace path starts at `trace_base` (the spec's folder), if given."""
    if not models:
        raise DataError("There is no model to ask for.", hint="Add [[models]] to the specification.")
    rng = Rng(seed, "twin.workload")
    rows = _rows(workload, rng, trace_base)
    weights = [max(0.0, workload.mix.get(name, 0.0 if workload.mix else 1.0)) for name in models]
    if sum(weights) <= 0:
        raise DataError("The mix names none of the models.", hint=f"Known models: {', '.join(models)}.")
    return [_arrival(row, workload, rng, models, weights) for row in rows]


def read_trace(path: Path) -> list[TraceRow]:
    """The rows of a CSV trace, in order of arrival, the first at 0.

    Known headers: arrival_s, arrival_ms, arrival_ns, arrival (seconds) or timestamp (seconds, or a date and time as
    in `2023-11-16 18:15:46.6805900`); input_tokens, prompt_tokens, input or ContextTokens; output_tokens,
    completion_tokens, output or GeneratedTokens; optionally model. `DataError` names file and line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_parse(file, str(path)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    if not rows:
        raise DataError(f"{path}: no rows after the header.")
    rows.sort(key=lambda row: row.at_ns)
    first = rows[0].at_ns
    return [TraceRow(row.at_ns - first, row.input_tokens, row.output_tokens, row.model) for row in rows]


def _rows(workload: Workload, rng: Rng, base: Path | None) -> Iterator[TraceRow]:
    if workload.trace:
        path = base / workload.trace if base is not None else Path(workload.trace)
        if not workload.trace_speed > 0:
            raise DataError("trace_speed must be above 0.")
        for row in read_trace(path)[: workload.requests or None]:
            at_ns = round(row.at_ns / workload.trace_speed)
            yield TraceRow(at_ns, row.input_tokens, row.output_tokens, row.model)
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
        model=row.model or _choose(models, weights, rng),
        key=rng.below(max(1, workload.keys)),
        prompt_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        max_tokens=row.output_tokens + rng.below(row.output_tokens + 1),
        prefix=prefix,
        prefix_tokens=0 if prefix < 0 else max(1, min(row.input_tokens - 1, workload.prompt_tokens // 2)),
        stream=rng.unit() < workload.stream,
    )


def _choose(models: Sequence[str], weights: Sequence[float], rng: Rng) -> str:
    left = rng.unit() * sum(weights)
    for name, weight in zip(models, weights, strict=True):
        left -= weight
        if left < 0:
            return name
    return models[-1]


_ARRIVAL = {
    "arrival_s": NS_PER_S,
    "arrival_ms": NS_PER_MS,
    "arrival_ns": 1,
    "arrival": NS_PER_S,
    "timestamp": NS_PER_S,
}
_INPUT = ("input_tokens", "prompt_tokens", "input", "contexttokens")
_OUTPUT = ("output_tokens", "completion_tokens", "output", "generatedtokens")


def _parse(file: Iterable[str], name: str) -> Iterator[TraceRow]:
    reader = csv.reader(file)
    header = [cell.strip().lower() for cell in next(reader, [])]
    arrival = _column(header, tuple(_ARRIVAL), name)
    unit_ns = _ARRIVAL[header[arrival]]
    given, made = _column(header, _INPUT, name), _column(header, _OUTPUT, name)
    model = header.index("model") if "model" in header else -1
    for cells in reader:
        line = reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(f"{name}, line {line}: {len(cells)} columns where the header has {len(header)}.")
        yield TraceRow(
            at_ns=_instant(cells[arrival].strip(), unit_ns, f"{name}, line {line}"),
            input_tokens=_count(cells[given], header[given], f"{name}, line {line}"),
            output_tokens=_count(cells[made], header[made], f"{name}, line {line}"),
            model=cells[model].strip() if model >= 0 else "",
        )


def _column(header: list[str], known: tuple[str, ...], name: str) -> int:
    for candidate in known:
        if candidate in header:
            return header.index(candidate)
    raise DataError(
        f"{name}, line 1: no column named {' or '.join(known)}.", hint="The first line names the columns."
    )


def _count(text: str, column: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise DataError(f"{where}: {column} is {text.strip()!r}, not a whole number.") from None
    if not 1 <= value <= 100_000_000:
        raise DataError(f"{where}: {column} is {value}; it must lie between 1 and 100,000,000.")
    return value


def _instant(text: str, unit_ns: int, where: str) -> int:
    try:
        if ":" not in text:
            value = float(text) if unit_ns > 1 else int(text)
            if not math.isfinite(value) or not 0 <= value * unit_ns < 1 << 62:
                raise ValueError(text)
            return round(value * unit_ns)
        whole, _, fraction = text.removesuffix("Z").removesuffix("+00:00").partition(".")
        if fraction and not (fraction.isdecimal() and len(fraction) <= 9):
            raise ValueError(text)
        moment = datetime.strptime(whole.replace("T", " "), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return round(moment.timestamp()) * NS_PER_S + int(fraction.ljust(9, "0"))
    except ValueError:
        raise DataError(f"{where}: the arrival {text!r} is neither a number nor a date and time.") from None
