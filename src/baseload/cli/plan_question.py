"""A plan's question, from its files to a checked specification: traces, zones, catalogues and configurations read."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from baseload.cli.plan_words import BEGIN_A_PLAN
from baseload.domain.errors import DataError, SettingsError
from baseload.limits.carbon import Zone, parse_hourly
from baseload.limits.catalogue.book import Book, read_book
from baseload.policy.plan.ranges import HINT, check_ranges, check_stocks
from baseload.policy.plan.spec import OBJECTIVES, PlanSpec, Traffic, check_spec, with_hours
from baseload.policy.plan.surroundings import with_zones
from baseload.twin.traces import read_trace, shared_of
from baseload.wire.toml import parse_toml

LENGTHS_KEPT = 20_000  # of a trace, for the twin's run
PEAK_S = 60.0  # a trace's peak is its busiest minute


@dataclass(frozen=True, slots=True)
class Question:
    """A checked specification with all that its files hold."""

    spec: PlanSpec
    book: Book
    lengths: dict[str, list[tuple[int, int]]]  # (prompt, answer) tokens of requests, of models that have a trace
    configs: dict[str, dict[str, Any]]  # config.json by the name that stands for its path in `spec`
    filled: tuple[str, ...]  # what zones gave, in words


def read_question(path: Path, *, objective: str = "") -> Question:
    """The question in a TOML file; SettingsError or DataError name the file and the key at fault."""
    spec = read_spec(path)
    if objective:
        if objective not in OBJECTIVES:
            raise SettingsError(f"--objective: unknown {objective!r}.", hint=f"Known: {', '.join(OBJECTIVES)}.")
        spec = msgspec.structs.replace(spec, objective=objective)
    spec, lengths = with_traces(spec, path.parent)
    book = _book(spec, path.parent)
    spec, filled = with_zones(spec, _zones(spec, path.parent) | book.zones, book.transfer, name=str(path))
    check_spec(spec := with_hours(spec), name=str(path))
    spec, configs = with_configs(spec, path.parent)
    check_stocks(spec, book.accelerators, name=str(path))
    _check_providers(spec, book, name=str(path))
    return Question(spec, book, lengths, configs, filled)


def read_spec(path: Path) -> PlanSpec:
    """The specification in a TOML file; SettingsError names the file and the key at fault."""
    spec = parse_toml(_read(path), PlanSpec, name=str(path), hint=HINT)
    check_ranges(msgspec.to_builtins(spec), spec, name=str(path))
    return spec


def with_traces(spec: PlanSpec, base: Path) -> tuple[PlanSpec, dict[str, list[tuple[int, int]]]]:
    """The specification with the blanks of traffic filled from its traces, and the lengths found there."""
    lengths: dict[str, list[tuple[int, int]]] = {}
    models = []
    for model in spec.models:
        if model.traffic.trace:
            rows = read_trace(base / model.traffic.trace)
            rows = [row for row in rows if row.model in ("", model.name)]
            lengths[model.name] = [(r.input_tokens, r.output_tokens) for r in rows[:LENGTHS_KEPT]]
            times = [row.at_ns / 1e9 for row in rows]
            traffic = _filled(model.traffic, times, lengths[model.name])
            if not traffic.shared_prefix:
                traffic = msgspec.structs.replace(traffic, shared_prefix=round(shared_of(rows), 3))
            model = msgspec.structs.replace(model, traffic=traffic)
        models.append(model)
    return msgspec.structs.replace(spec, models=tuple(models)), lengths


def _filled(traffic: Traffic, times_s: list[float], lengths: list[tuple[int, int]]) -> Traffic:
    if len(times_s) < 2:
        raise DataError(f"{traffic.trace}: a trace needs at least two requests.", hint="Give a longer one.")
    span_s = max(times_s[-1] - times_s[0], 1e-9)
    counts: dict[int, int] = {}
    for at_s in times_s:
        counts[int(at_s // PEAK_S)] = counts.get(int(at_s // PEAK_S), 0) + 1
    mean = len(times_s) / span_s
    rate = traffic.requests_per_s or mean
    peak = max(max(counts.values()) / PEAK_S, mean) * rate / mean
    prompts, outputs = [p for p, _ in lengths], [o for _, o in lengths]
    return msgspec.structs.replace(
        traffic,
        requests_per_s=rate,
        peak_requests_per_s=traffic.peak_requests_per_s or peak,
        prompt_tokens=traffic.prompt_tokens or max(1, round(sum(prompts) / len(prompts))),
        output_tokens=traffic.output_tokens or max(1, round(sum(outputs) / len(outputs))),
        prompt_cv=_cv(prompts),
        output_cv=_cv(outputs),
    )


def _cv(values: list[int]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) / mean


def with_configs(spec: PlanSpec, base: Path) -> tuple[PlanSpec, dict[str, dict[str, Any]]]:
    """The specification with each path of a config.json replaced by a name, and the configurations by that name."""
    configs: dict[str, dict[str, Any]] = {}

    def named(item: Any) -> Any:
        if not item.model.endswith(".json"):
            return item
        path = base / item.model
        try:
            configs[f"{item.name} (config)"] = msgspec.json.decode(_read(path), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: not a JSON object: {error}.", hint="Give the model's config.json.") from None
        return msgspec.structs.replace(item, model=f"{item.name} (config)")

    models, training = tuple(named(m) for m in spec.models), tuple(named(t) for t in spec.training)
    return msgspec.structs.replace(spec, models=models, training=training), configs


def _book(spec: PlanSpec, base: Path) -> Book:
    """The catalogue, with the user's own entries where the specification names a file of them."""
    if not spec.accelerators_file:
        return read_book()
    own = base / spec.accelerators_file
    return read_book(_read(own), name=str(own))


def _zones(spec: PlanSpec, base: Path) -> dict[str, Zone]:
    return parse_hourly(_read(base / spec.zones_file), name=spec.zones_file) if spec.zones_file else {}


def _check_providers(spec: PlanSpec, book: Book, *, name: str) -> None:
    providers = sorted({price.provider for price in book.prices})
    for site in spec.sites:
        if site.provider and site.provider not in providers:
            raise SettingsError(
                f"{name}: site {site.name!r}: unknown provider {site.provider!r}.",
                hint=f"Known: {', '.join(providers)}.",
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}.", hint=BEGIN_A_PLAN) from None
