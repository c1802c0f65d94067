"""Arrivals recorded elsewhere: any CSV with a header, the Azure LLM traces, JSON lines as Mooncake publishes them."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.limits.tables import separator_of

HASHED_TOKENS = 512  # prompt tokens behind each of Mooncake's block hashes


class TraceRow(Struct, frozen=True):
    """One row of a trace. `model` is "" where the trace does not say."""

    at_ns: int
    input_tokens: int
    output_tokens: int
    model: str = ""
    blocks: tuple[int, ...] = ()  # hashes of the prompt's beginning, block by block


def read_trace(path: Path, *, columns: Mapping[str, str] | None = None) -> list[TraceRow]:
    """The rows of a trace, in order of arrival, the first at 0.

    CSV headers known: arrival_s, arrival_ms, arrival_ns, arrival or arrived_at (seconds) or timestamp (seconds, or a
    date and time as in `2023-11-16 18:15:46.6805900`); input_tokens, prompt_tokens, input, ContextTokens, Request
    tokens and the like (see `_INPUT`), and the same of outputs; optionally model. `columns` names others: ours → the
    file's. Commas, semicolons or tabs stand between the cells. A file ending in .jsonl holds objects of timestamp
    (milliseconds), input_length, output_length and hash_ids.
    `DataError` names file and line.
    """
    try:
        if path.suffix == ".jsonl":
            rows = list(_parse_lines(path.read_bytes(), str(path)))
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(_parse(file.read(), str(path), columns or {}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {why}.", hint="Name a CSV, or Mooncake's .jsonl.") from None
    if not rows:
        raise DataError(f"{path}: no rows after the header.")
    rows.sort(key=lambda row: row.at_ns)
    first = rows[0].at_ns
    return [TraceRow(r.at_ns - first, r.input_tokens, r.output_tokens, r.model, r.blocks) for r in rows]


class _Line(Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def _parse_lines(data: bytes, name: str) -> Iterator[TraceRow]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"{where}: {error}.") from None
        at_ns = _instant(repr(row.timestamp), NS_PER_MS, where)
        given = _bounded(row.input_length, "input_length", where)
        yield TraceRow(at_ns, given, _bounded(row.output_length, "output_length", where), "", row.hash_ids)


_ARRIVAL = {
    "arrival_s": NS_PER_S,
    "arrival_ms": NS_PER_MS,
    "arrival_ns": 1,
    "arrival": NS_PER_S,
    "arrival_time": NS_PER_S,
    "arrived_at": NS_PER_S,
    "timestamp": NS_PER_S,
}
_INPUT = (
    "input_tokens", "prompt_tokens", "input", "contexttokens", "request tokens", "input_length", "num_prefill_tokens",
    "input_toks",
)  # fmt: skip
_OUTPUT = (
    "output_tokens", "completion_tokens", "output", "generatedtokens", "response tokens", "output_length",
    "num_decode_tokens", "output_toks",
)  # fmt: skip


def _parse(text: str, name: str, columns: Mapping[str, str]) -> Iterator[TraceRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator_of(text))
    header = [cell.strip().lower() for cell in next(reader, [])]
    for ours, theirs in columns.items():
        if ours not in (*_ARRIVAL, *_INPUT, *_OUTPUT, "model"):
            known = "arrival_s, arrival_ms, arrival_ns, input_tokens, output_tokens, model"
            raise DataError(f"columns: {ours!r} is none of ours.", hint=f"Known: {known}.")
        if theirs.lower() not in header:
            raise DataError(f"{name}, line 1: no column named {theirs!r}, which `columns` calls {ours}.")
        header = ["" if cell == ours else cell for cell in header]
        header[header.index(theirs.lower())] = ours
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
        f"{name}, line 1: no column named {' or '.join(known)}.",
        hint=f"The file has {', '.join(filter(None, header)) or 'no column'}; name them so, or say which is which: "
        f'[workload] columns = {{ {known[0]} = "…" }} in the specification.',
    )


def _count(text: str, column: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise DataError(f"{where}: {column} is {text.strip()!r}, not a whole number.") from None
    return _bounded(value, column, where)


def _bounded(value: int, column: str, where: str) -> int:
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
        moment = datetime.fromisoformat(whole.replace("T", " ")).replace(tzinfo=UTC)
        return round(moment.timestamp()) * NS_PER_S + int(fraction.ljust(9, "0"))
    except ValueError:
        raise DataError(f"{where}: the arrival {text!r} is neither a number nor a date and time.") from None


def shared_of(rows: Iterable[TraceRow]) -> float:
    """Share of all prompt tokens whose block was asked before: what a prefix cache without bound would save.

    0 for traces without hashes of blocks.
    """
    seen: dict[int, None] = {}
    hits = tokens = 0
    for row in rows:
        tokens += row.input_tokens
        for block in row.blocks:
            if block in seen:
                hits += HASHED_TOKENS
            seen[block] = None
    return min(hits / tokens, 0.99) if tokens else 0.0
