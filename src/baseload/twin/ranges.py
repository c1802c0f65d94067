"""Whether each value of a simulation's specification can be one of its setting: kind, range, and what goes together.

`complaint` walks tables beside the structs they will become, and tells the first value at fault in one line: its
table and key as TOML writes them, what is allowed, what was found. Keys that no struct has are left to `wire.toml`,
which names the nearest known one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from baseload.twin.cluster.spec import Cluster
from baseload.twin.range_tables import DEFAULT, FILLED, RULES, Rule
from baseload.twin.spec import SimulateConfig

MOST_SPAN_S = 366 * 86_400.0
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    dict: "a table",
}


def complaint(raw: object, kind: type[Struct], *, table: str = "", filled: bool = False) -> str:
    """The first value in `raw` that cannot be, in words without a full stop; "" where all can.

    `filled`: settings that the program fills may stand there too.
    """
    return next(_struct(raw, kind, table, filled), "")


def joint_complaint(config: SimulateConfig) -> str:
    """What does not go together, in words without a full stop; "" where all does."""
    return next(_joint(config), "")


def _joint(config: SimulateConfig) -> Iterator[str]:
    names = [spec.name for spec in config.models]
    for at, spec in enumerate(config.models):
        low, high = spec.scaling.min_replicas, spec.scaling.max_replicas
        if low > high and not spec.is_remote:
            yield f"[models[{at}].scaling]: `min_replicas` is {low} and `max_replicas` {high}"
        if names.index(spec.name) != at:
            yield f"[models[{at}]]: there are two models named {spec.name!r}"
    for name in config.hardware:
        if name not in names:
            yield f"[hardware.{name}]: there is no model {name!r}; known are: {', '.join(names) or 'none'}"
    workload = config.workload
    if not workload.sources and not workload.trace and workload.requests / workload.rate_per_s > MOST_SPAN_S:
        yield f"[workload]: {workload.requests:,} requests at `rate_per_s` {workload.rate_per_s:g} take over a year"
    for at, source in enumerate(workload.sources):
        where = f"[workload.sources[{at}]]"
        if source.kind == "trace":
            if not source.trace:
                yield f"{where}: a `trace` source needs a file in `trace`"
        elif not source.requests and not source.duration_s:
            yield f"{where}: `duration_s` or `requests` must be above 0"
        elif source.requests and not source.duration_s and source.requests / source.rate_per_s > MOST_SPAN_S:
            yield f"{where}: {source.requests:,} requests at `rate_per_s` {source.rate_per_s:g} take over a year"
    if config.cluster is not None:
        yield from _joint_cluster(config.cluster)


def _joint_cluster(cluster: Cluster) -> Iterator[str]:
    if not cluster.sites:
        yield "[cluster]: at least one of `[[cluster.sites]]` is needed"
    for what, named in (("sites", cluster.sites), ("jobs", cluster.jobs), ("services", cluster.services)):
        names = [one.name for one in named]
        for at, name in enumerate(names):
            if names.index(name) != at:
                yield f"[cluster.{what}[{at}]]: there are two named {name!r}"
    cheapest = min((min(site.usd_per_kwh, default=0.0) for site in cluster.sites), default=0.0)
    for at, stream in enumerate(cluster.jobs):
        sizes = stream.sizes
        if 0 < stream.most_usd_per_kwh < cheapest:
            yield (
                f"[cluster.jobs[{at}]]: `most_usd_per_kwh` is {stream.most_usd_per_kwh:g}, and electricity is never "
                f"below {cheapest:g}: these jobs would wait for ever"
            )
        if not stream.trace and (min((size for size, _ in sizes), default=0) < 1 or sum(w for _, w in sizes) <= 0):
            yield f"[cluster.jobs[{at}]]: `sizes` needs pairs of accelerators (from 1) and weights, not all 0"
    for at, service in enumerate(cluster.services):
        if service.scaling.min_replicas > service.scaling.max_replicas:
            yield f"[cluster.services[{at}].scaling]: `min_replicas` is above `max_replicas`"
        if service.scaling.prompt_tokens_per_s or service.scaling.output_tokens_per_s:
            yield f"[cluster.services[{at}].scaling]: a fleet's service has no tokens; give `requests_per_s`"


def _struct(raw: object, kind: type[Struct], table: str, filled: bool) -> Iterator[str]:
    if not isinstance(raw, dict):
        yield f"{_at(table)} must be a table, not {_shown(raw)}"
        return
    hints = get_type_hints(kind)
    for key, value in raw.items():
        if key not in hints:
            continue
        if (kind.__name__, key) in FILLED:
            if not filled:
                yield f"`{_dotted(table, key)}` is filled by the program: leave it out"
            continue
        yield from _value(value, hints[key], RULES.get((kind.__name__, key)), table, key, filled)
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in raw:
            yield f"{_at(table)} needs a `{field.name}`"


def _value(value: object, hint: Any, rule: Rule | None, table: str, key: str, filled: bool) -> Iterator[str]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is not None:
            yield from _value(value, next(a for a in args if a is not type(None)), rule, table, key, filled)
    elif isinstance(hint, type) and issubclass(hint, Struct):
        yield from _struct(value, hint, _dotted(table, key), filled)
    elif origin is dict:
        if not isinstance(value, dict):
            yield _wrong(table, key, value, "a table")
            return
        for name, of in value.items():
            yield from _value(of, args[1], rule, _dotted(table, key), str(name), filled)
    elif origin is tuple:
        yield from _items(value, args, rule, table, key, filled)
    else:
        yield from _scalar(value, hint, rule, table, key)


def _items(
    value: object, args: Sequence[Any], rule: Rule | None, table: str, key: str, filled: bool
) -> Iterator[str]:
    is_list = isinstance(value, list | tuple)
    endless = len(args) == 2 and args[1] is Ellipsis
    if not is_list or (not endless and len(value) != len(args)):  # type: ignore[arg-type]  # a list by then
        wanted = "a list" if endless else f"a list of {len(args)}"
        yield _wrong(table, key, value, wanted)
        return
    assert isinstance(value, list | tuple)
    for at, item in enumerate(value):
        hint = args[0] if endless else args[at]
        if isinstance(hint, type) and issubclass(hint, Struct):
            yield from _struct(item, hint, f"{_dotted(table, key)}[{at}]", filled)
        else:
            yield from _value(item, hint, rule, table, key, filled)


def _scalar(value: object, hint: Any, rule: Rule | None, table: str, key: str) -> Iterator[str]:
    if get_origin(hint) is Literal:
        hint, rule = str, Rule(words=get_args(hint))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = (
        isinstance(value, bool)
        if hint is bool
        else isinstance(value, str)
        if hint is str
        else is_number and (hint is float or isinstance(value, int))
    )
    rule = rule or DEFAULT
    words = _WORDS.get(hint, "a value")
    if hint in (int, float):
        words += f" {rule.told()}"
    elif rule.words:
        words = f"one of {', '.join(word or repr(word) for word in rule.words)}"
    if not fits:
        yield _wrong(table, key, value, words)
    elif hint is str:
        assert isinstance(value, str)
        if (
            (rule.words and value not in rule.words)
            or (rule.is_needed and not value)
            or len(value) > rule.most_letters
        ):
            needed = words if rule.words else f"a text of 1 to {rule.most_letters} letters"
            yield _wrong(table, key, value, needed)
    elif is_number:
        assert isinstance(value, int | float)
        if not (math.isfinite(value) and rule.holds(value)):
            yield _wrong(table, key, value, words)


def _wrong(table: str, key: str, value: object, wanted: str) -> str:
    return f"{_at(table)}: `{key}` must be {wanted}, not {_shown(value)}"


def _at(table: str) -> str:
    """The table as TOML heads it; of a list of tables, with its place."""
    return f"[{table}]" if table else "the top of the file"


def _dotted(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, Mapping) else "a table"
    return text if len(text) <= 40 else f"{text[:37]}…"
