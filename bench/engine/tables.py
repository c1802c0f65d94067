"""From turns to tables: figures, ratios to the best peer of the same round, and the share of the machine's limits."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from roster import Contender
from shapes import SHAPES, active_parameters, kv_bytes_per_token

Series = dict[int, float]  # by round
Points = dict[tuple[str, str], dict[str, Series]]  # (point, unit) → contender → values
LOWER = ("s", "ms", "MB")  # units of which less is better
ALLOWED = "%"  # of 1.25 × (weights + KV cache) + 250 MB: the bound that our memory is held to


def label(point: dict[str, Any]) -> str:
    """A point's name in tables."""
    match point["what"]:
        case "prefill":
            return f"prefill {point['tokens']}"
        case "decode":
            return f"decode ×{point['batch']} @{point['context']}"
    return str(point["what"])


def figures(result: dict[str, Any], shape: str) -> Points:
    """The values of a shape; points in the order of measurement, those of the same kind together."""
    found: Points = {}
    for turn in result["turns"]:
        if turn["shape"] == shape:
            for point, unit, value in _of_turn(turn):
                found.setdefault((point, unit), {}).setdefault(turn["name"], {})[turn["round"]] = value
    kinds = list(dict.fromkeys(point.split()[0] for point, _ in found))
    return dict(sorted(found.items(), key=lambda item: kinds.index(item[0][0].split()[0])))


def _of_turn(turn: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    for one in turn["points"]:
        if "rate" not in one:
            continue
        name = label(one["point"])
        yield name, "tok/s", one["rate"]
        if name == "mixed":
            for what in ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99"):
                yield f"mixed {what.replace('_', ' ').upper().replace(' P', ' p')}", "ms", one[what] * 1e3
    if turn["part"] == "main":
        for name, key, unit, factor in (
            ("start → first token", "start_s", "s", 1.0),
            ("start → first byte, HTTP", "worker_start_s", "s", 1.0),
            ("cold disk: start → first token", "cold_start_s", "s", 1.0),
            ("peak memory", "peak_bytes", "MB", 1e-6),
        ):
            if turn.get(key) is not None:
                yield name, unit, turn[key] * factor
        if turn.get("peak_bytes") and turn.get("weights_bytes"):
            allowed = 1.25 * (turn["weights_bytes"] + turn["kv_bytes"]) + 250e6
            yield "peak memory of 1.25 × (weights + KV) + 250 MB", ALLOWED, 100 * turn["peak_bytes"] / allowed


def ratio_to_best(mine: Series, others: dict[str, Series], unit: str) -> tuple[float, str] | None:
    """The median over rounds of mine to the best of the others in the same round (above 1: mine is better); whose."""
    ratios, names = [], []
    for number, value in mine.items():
        present = {name: series[number] for name, series in others.items() if number in series}
        if not present:
            continue
        best = min(present, key=present.__getitem__) if unit in LOWER else max(present, key=present.__getitem__)
        ratios.append(present[best] / value if unit in LOWER else value / present[best])
        names.append(best)
    return (statistics.median(ratios), statistics.mode(names)) if ratios else None


def print_tables(result: dict[str, Any], contenders: Sequence[Contender], console: Console) -> None:
    """All of it."""
    machine = result["machine"]
    about = (
        f"{machine['processor']}, {machine['cores']} cores, {' '.join(machine['features'])}",
        f"{machine['memory_gb']} GB; {machine['system']}; Python {machine['python']}",
        f"{result['date']}; load now {machine['load']:.1f}",
    )
    console.print("; ".join(about), highlight=False, soft_wrap=True)
    for shape in dict.fromkeys(turn["shape"] for turn in result["turns"]):
        found = figures(result, shape)
        here = [one for one in contenders if any(one.name in series for series in found.values())]
        _values(shape, found, here, console)
        _ratios(shape, found, here, console)
        _limits(result, shape, found, here, console)
        _notes(result, shape, console)


def _values(shape: str, found: Points, here: Sequence[Contender], console: Console) -> None:
    config = SHAPES[shape]
    sizes = f"{config.parameters / 1e6:.0f} M parameters, {active_parameters(config) / 1e6:.0f} M work for a token"
    table = _table(f"{shape}: {sizes}; medians of the rounds", here)
    for (point, unit), series in found.items():
        table.add_row(f"{point}, {unit}", *(_median(series.get(one.name), unit) for one in here))
    console.print(table)


def _table(title: str, columns: Sequence[Contender]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for one in columns:
        table.add_column(one.name.replace(" ", "\n"), justify="right", no_wrap=True)
    return table


def _median(series: Series | None, unit: str) -> str:
    if not series:
        return "–"
    value = statistics.median(series.values())
    return f"{value:.2f}" if unit == "s" else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ratios(shape: str, found: Points, here: Sequence[Contender], console: Console) -> None:
    ours = [one for one in here if one.is_ours]
    if not ours or len(ours) == len(here):
        return
    table = Table(title=f"{shape}: Baseload to the best peer of each round", title_justify="left")
    table.add_column("", no_wrap=True)
    for one in ours:
        table.add_column(f"{one.name.removeprefix('baseload ')}\nto {one.family}-bit", justify="right", no_wrap=True)
        table.add_column("\nto any", justify="right", no_wrap=True)
    for (point, unit), series in found.items():
        if unit == ALLOWED:
            continue
        row = []
        for one in ours:
            rivals = [peer for peer in here if not peer.is_ours and peer.isa == one.isa]
            if one.isa == "avx512":  # the native build is its like where there is no AMX
                rivals = [peer for peer in here if not peer.is_ours and not peer.isa]
            row.append(_against(one, [peer for peer in rivals if peer.family == one.family], series, unit))
            row.append(_against(one, rivals, series, unit))
        table.add_row(point, *row)
    console.print(table)


def _against(one: Contender, rivals: Sequence[Contender], series: dict[str, Series], unit: str) -> str:
    others = {peer.name: series[peer.name] for peer in rivals if peer.name in series}
    found = ratio_to_best(series.get(one.name, {}), others, unit)
    return "–" if found is None else f"{found[0]:.2f} {found[1].replace(' ', ' ')}"


def _limits(result: dict[str, Any], shape: str, found: Points, here: Sequence[Contender], console: Console) -> None:
    known = [one for one in result["limits"] if one["shape"] == shape]
    if not known:
        return

    def best(key: str) -> float:
        return max((float(one[key]) for one in known if key in one), default=0.0)

    read, int8, bf16 = best("read_bytes_per_s"), best("int8_ops_per_s"), best("bf16_flops_per_s")
    console.print(
        f"measured in these rounds: {read / 1e9:.1f} GB/s read, int8 {int8 / 1e12:.2f} TOP/s ({known[0]['int8_by']}),"
        f" bf16 {bf16 / 1e12:.2f} TFLOP/s ({known[0]['bf16_by']})",
        highlight=False,
        soft_wrap=True,
    )
    table = _table(f"{shape}: achieved over limit, best round", here)
    for point, limit in _bounds(shape, read, int8, bf16):
        series = found.get((point, "tok/s"))
        if series:
            table.add_row(point, *(_share(series.get(one.name), limit(one)) for one in here))
    console.print(table)


def _bounds(shape: str, read: float, int8: float, bf16: float) -> Iterator[tuple[str, Callable[[Contender], float]]]:
    """Each point's most tokens per second: by what must be read, or by what must be multiplied."""
    config = SHAPES[shape]
    weights, kv = active_parameters(config), kv_bytes_per_token(config)
    body = weights - config.vocab_size * config.hidden
    for tokens in (512, 2048):
        attention = (
            2 * tokens * config.heads * config.head_dim * config.layers
        )  # per token: half the square, two products
        flops = 2 * body + attention + 2 * config.vocab_size * config.hidden / tokens
        yield f"prefill {tokens}", lambda one, flops=flops: (int8 if one.is_int8 else bf16) / flops
    for batch, context in ((1, 128), (8, 128), (32, 128), (1, 1024), (8, 1024), (32, 1024)):

        def bound(one: Contender, batch: int = batch, context: int = context) -> float:
            seconds = (weights * one.bits / 8 + batch * context * kv) / read if read else 0.0
            compute = 2 * weights * batch / (int8 if one.is_int8 else bf16) if int8 and bf16 else 0.0
            return batch / max(seconds, compute) if seconds else 0.0

        yield f"decode ×{batch} @{context}", bound


def _share(series: Series | None, limit: float) -> str:
    if not series or not limit:
        return "–"
    return f"{100 * max(series.values()) / limit:.0f} %"


def _notes(result: dict[str, Any], shape: str, console: Console) -> None:
    """What was run, what was not and why."""
    about = {turn["name"]: turn["about"] for turn in result["turns"] if turn["shape"] == shape and turn.get("about")}
    for name, words in about.items():
        console.print(f"{name}: {words}", highlight=False, soft_wrap=True, style="dim")
    for name, note in result["environments"].items():
        if note:
            console.print(f"{name}: {note}", highlight=False, soft_wrap=True, style="dim")
    for name, why in result["absent"].items():
        console.print(f"{name}: not at hand: {why}", highlight=False, soft_wrap=True)
    failed: dict[str, None] = {}
    for turn in result["turns"]:
        if turn["shape"] != shape:
            continue
        if turn["failed"]:
            failed[f"{turn['name']}: failed: {turn['failed']}"] = None
        for one in turn["points"]:
            why = one.get("failed") or one.get("unsupported")
            if why:
                failed[f"{turn['name']}, {label(one['point'])}: not measured: {why}"] = None
    for line in failed:
        console.print(line, highlight=False, soft_wrap=True)
